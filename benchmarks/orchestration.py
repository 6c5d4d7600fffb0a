"""What Prefect costs around a step: `python -m benchmarks.orchestration [--json]`; see README.md beside this file.

`--profile FILE` writes a profile of the flow with the steps run, for pstats.
"""

import cProfile
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import cpu_seconds, finish, fresh_process, parser

ROUNDS = 3
TARGET = 25  # milliseconds of CPU a task
SENT_SECONDS = 4  # logs and events leave in the background, some seconds after


def part(tasks: int, rounds: int, profile: Path | None) -> dict[str, Any]:
    """In a fresh process: a server as `preftune run` starts it, and flows whose steps do nothing but get stored.

    Each flow runs twice with the same keys: the steps run, then they come from the cache.
    """
    import psutil

    from flows.local_server import LocalServer
    from preftune.workspace import Workspace

    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder), Path(folder) / ".preftune").make()
        server = LocalServer(workspace)
        os.environ["PREFECT_LOCAL_STORAGE_PATH"] = str(workspace.prefect / "results")
        began = cpu_seconds()
        from prefect import flow, task

        from flows.pipeline_steps import Pipeline
        from preftune import store
        from tasks.policy import STEP_CACHE, worth_a_retry

        imports = cpu_seconds() - began
        server.wait()
        process = psutil.Process(server._process.pid)

        @task(name="nothing", cache_policy=STEP_CACHE, persist_result=True, retries=2, retry_condition_fn=worth_a_retry)
        def nothing(key: str, workspace: Workspace) -> store.StepResult:
            return store.make(workspace, "nothing", key, lambda _: {})

        @flow(name="steps", persist_result=False)
        def steps(keys: list[str]) -> None:
            pipeline: Any = Pipeline(workspace, None, None)  # pyright: ignore[reportArgumentType]
            for key in keys:
                pipeline.run(nothing, key)

        def count(keys: list[str]) -> tuple[float, float]:
            """Milliseconds of CPU a task: of this process, of the server."""
            before, server_before = cpu_seconds(), sum(process.cpu_times()[:2])
            steps(keys)
            time.sleep(SENT_SECONDS)
            used = cpu_seconds() - before, sum(process.cpu_times()[:2]) - server_before
            return used[0] / tasks * 1000, used[1] / tasks * 1000

        count([f"warm-{i}" for i in range(3)])
        found: dict[str, Any] = {"tasks": tasks, "imports_seconds": round(imports, 2)}
        rows: dict[str, list[tuple[float, float]]] = {"run": [], "cached": []}
        for number in range(rounds):
            keys = [f"{number}-{i}" for i in range(tasks)]
            for name in rows:
                rows[name].append(count(keys))
        for name, row in rows.items():
            found[name] = {"flow": round(min(f for f, _ in row), 1), "server": round(min(s for _, s in row), 1)}
            found[name]["both"] = round(min(map(sum, row)), 1)
            found[name]["median"] = round(statistics.median(f for f, _ in row), 1)
        if profile:
            with cProfile.Profile() as watched:
                steps([f"profiled-{i}" for i in range(tasks)])
            watched.dump_stats(profile)
    return found


def measure(tasks: int, profile: Path | None) -> dict[str, Any]:
    """Runs `part` in a process of its own."""
    more = [f"--profile={profile.resolve()}"] if profile else []
    done = fresh_process("benchmarks.orchestration", "--part", f"--tasks={tasks}", *more)
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "ms_per_task": found["run"]["flow"]}


def main() -> None:
    arguments = parser("orchestration", __doc__)
    arguments.add_argument("--tasks", type=int, default=40, help="in each flow")
    arguments.add_argument("--profile", type=Path, help="where to write a profile")
    arguments.add_argument("--part", action="store_true", help="(used by itself)")
    given = arguments.parse_args()
    if given.part:
        print(json.dumps(part(given.tasks, ROUNDS, given.profile)))
        return
    finish(measure(given.tasks, given.profile), given.json, text_of)


def text_of(found: dict[str, Any]) -> str:
    """The figures in words."""
    lines = [f"{found['tasks']} tasks in a flow, ms of CPU a task, the least of {ROUNDS} (target: at most {TARGET})"]
    for name in ("run", "cached"):
        row = found[name]
        lines.append(f"  {name}: {row['flow']} in the flow's process, {row['server']} in the server")
    return "\n".join([*lines, f"  imports before the first task: {found['imports_seconds']} s, once"])


if __name__ == "__main__":
    main()
