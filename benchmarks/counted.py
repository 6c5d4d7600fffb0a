"""`python -m benchmarks.counted FILE COMMAND …`: a preftune command in this process, and what it took, in FILE.

The file: `flow` (CPU-seconds of this process), `children` (of the steps' processes), `server` (of Prefect's),
`each` (of each step's process: name, CPU-seconds, seconds), `modules` (what was imported at the end).
"""

import atexit
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import cpu_seconds

CHILDREN = resource.RUSAGE_CHILDREN
found: dict[str, Any] = {"server": 0.0, "each": []}


def _write(path: Path) -> None:
    found["modules"] = sorted(sys.modules)
    found["children"] = cpu_seconds(CHILDREN) - found["server"]
    found["flow"] = cpu_seconds()
    path.write_text(json.dumps(found))


def _count_server() -> None:
    """It counts among the children when it has been stopped."""
    from flows.local_server import LocalServer

    stop = LocalServer._stop

    def counted(self: LocalServer) -> None:
        before = cpu_seconds(CHILDREN)
        stop(self)
        found["server"] = cpu_seconds(CHILDREN) - before

    LocalServer._stop = counted


def _count_steps() -> None:
    from preftune import children

    run = children.run_child

    def counted(command: list[str], **options: Any) -> None:
        before, began = cpu_seconds(CHILDREN), time.monotonic()
        try:
            run(command, **options)
        finally:
            used = {"cpu_seconds": cpu_seconds(CHILDREN) - before, "seconds": time.monotonic() - began}
            found["each"].append({"what": options["what"], "folder": options["folder"].name, **used})

    children.run_child = counted  # before those who import it


def main() -> None:
    atexit.register(_write, Path(sys.argv[1]).resolve())  # the first to be registered is called last
    _count_server()
    _count_steps()
    from flows.cli import main as preftune

    preftune(sys.argv[2:])


if __name__ == "__main__":
    main()
