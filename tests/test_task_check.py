"""Tasks are refused before the run, in words: unknown ones, unsafe ones, those whose packages or data are away."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from preftune import task_check, task_files
from preftune.errors import UserError
from preftune.evaluation_schema import Evaluation
from preftune.task_check import check_tasks
from preftune.task_files import scan
from preftune.workspace import Workspace

_scan = cache(scan)


def check(folder: Path, *tasks: str, own: str | None = None) -> None:
    check_tasks(Evaluation(tasks=tasks, task_folder=own), Workspace(folder, folder / ".preftune"))


@pytest.fixture(autouse=True)
def scanned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's 14,000 files do not change between tests."""
    shipped = task_files.lm_eval_folder()
    monkeypatch.setattr(task_check, "scan", lambda folder: _scan(folder) if folder == shipped else scan(folder))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No hub, and an empty cache, which is returned."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class _Hub(BaseHTTPRequestHandler):
    """Knows openai/gsm8k; truthfulqa/truthful_qa is gated; nothing else is there."""

    asked: list[str]

    def log_message(self, format: str, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = "/".join(self.path.split("/")[3:5])
        code, headers = 404, {"X-Error-Code": "RepoNotFound"}
        if self.path.endswith("/auth-check"):
            code, headers = 403, {"X-Error-Code": "GatedRepo"}
        elif name in ("openai/gsm8k", "truthfulqa/truthful_qa"):
            code, headers = 200, {}
        body = json.dumps({"id": name, "sha": "0" * 40, "gated": "auto" if "truthful" in name else False}).encode()
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, offline: Path) -> Iterator[list[str]]:
    """A server that answers as the hub does; the requests that it gets."""
    import huggingface_hub.constants as constants

    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_local_tasks_need_nothing(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's files are not even looked at."""
    monkeypatch.setattr(task_check, "scan", None)
    check(tmp_path, "preference_pairs", "facts", "instructions")
    check(tmp_path)


def test_an_unknown_task(offline: Path, tmp_path: Path) -> None:
    """With names that are close to it."""
    with pytest.raises(UserError, match=r"no such task: gsmk8 \(close to it: gsm8k.*\); qqqqqqqq\n") as e:
        check(tmp_path, "facts", "gsmk8", "qqqqqqqq")
    assert e.value.where == "evaluation.tasks"
    with pytest.raises(UserError, match=r"no such task: fact \(close to it: facts"):
        check(tmp_path, "fact")


def test_all_tasks_that_need_the_hub(offline: Path, tmp_path: Path) -> None:
    """In one message, a group by its own name, with the list that is left."""
    with pytest.raises(UserError) as e:
        check(tmp_path, "facts", "gsm8k", "mmlu", "instructions", "truthfulqa_mc2")
    assert e.value.error == (
        "the tasks gsm8k, mmlu, truthfulqa_mc2 need the hub, which is switched off (HF_HUB_OFFLINE)"
    )
    assert e.value.advice == "leave them out with --evaluation.tasks='[facts, instructions]'"


def test_a_data_set_in_the_cache(offline: Path, tmp_path: Path) -> None:
    """Where `datasets` itself looks for it, by configuration."""
    (offline / "openai___gsm8k" / "socratic" / "0.0.0" / "abc").mkdir(parents=True)
    with pytest.raises(UserError, match="the task gsm8k needs the hub"):
        check(tmp_path, "gsm8k")
    (offline / "openai___gsm8k" / "main" / "0.0.0" / "abc").mkdir(parents=True)
    check(tmp_path, "gsm8k")
    # as datasets.naming.camelcase_to_snakecase has them (importing it takes seconds)
    for name, folder in (("IFEval", "if_eval"), ("ARC-Challenge", "arc-challenge"), ("MMLU2Pro", "mmlu2_pro")):
        assert not task_check._is_cached(f"x/{name}", None)
        (offline / f"x___{folder}" / "default" / "0.0.0" / "abc").mkdir(parents=True)
        assert task_check._is_cached(f"x/{name}", None) and not task_check._is_cached(f"x/{name}", "other")


def test_a_hub_that_answers(hub: list[str], tmp_path: Path) -> None:
    """What is there may run; what is gated, or gone, is told of."""
    check(tmp_path, "gsm8k")
    assert [path for path in hub if "dataset" in path] == ["/api/datasets/openai/gsm8k"]
    with pytest.raises(
        UserError, match="task truthfulqa_mc2 needs the data set truthfulqa/truthful_qa, which is gated"
    ):
        check(tmp_path, "gsm8k", "truthfulqa_mc2")
    with pytest.raises(UserError, match="task hellaswag needs the data set Rowan/hellaswag, which is not on the hub"):
        check(tmp_path, "hellaswag")


def test_a_hub_that_is_away(hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once, not for every data set."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"^.*the tasks gsm8k, hellaswag need the hub, which cannot be reached \(Connect"
    ):
        check(tmp_path, "gsm8k", "hellaswag")
    assert hub == []


def test_missing_packages(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ifeval, with the command; beside what else is wrong."""
    monkeypatch.setattr(task_check, "installed", lambda name: name not in ("langdetect", "immutabledict"))
    monkeypatch.setattr(task_check, "_has_punkt", lambda: True)
    with pytest.raises(UserError) as e:
        check(tmp_path, "ifeval", "facts")
    assert e.value.error == (
        "the task ifeval needs packages that are not installed here (immutabledict, langdetect); "
        "the task ifeval needs the hub, which is switched off (HF_HUB_OFFLINE)"
    )
    assert e.value.advice == ("pip install immutabledict langdetect; or leave it out with --evaluation.tasks='[facts]'")


def test_nltks_data(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it ifeval would fail after the answers, not before; it is looked for where NLTK looks."""
    import nltk

    monkeypatch.setattr(task_check, "installed", lambda name: True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "data"))
    with pytest.raises(UserError, match=r"needs NLTK's sentence splitter.*\n.*python -m nltk.downloader punkt_tab"):
        check(tmp_path, "ifeval")
    (tmp_path / "data" / "tokenizers" / "punkt_tab").mkdir(parents=True)
    assert task_check._has_punkt()
    assert nltk.data.find("tokenizers/punkt_tab", paths=[str(tmp_path / "data")])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["humaneval"], "the task humaneval runs programs that the model writes"),
        (
            ["mmlu", "mmlu_astronomy"],
            "the task mmlu_astronomy would run twice: it is part of mmlu and of mmlu_astronomy",
        ),
        (["mmmu_val"], "the task mmmu_val asks about pictures or sound"),
    ],
)
def test_what_never_runs(tasks: list[str], message: str, offline: Path, tmp_path: Path) -> None:
    """Refused whether or not the hub is there."""
    with pytest.raises(UserError, match=message):
        check(tmp_path, *tasks)


def test_tasks_of_the_users_own(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by name in the folder, relative to the project; their files must be there."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tasks"
    with pytest.raises(UserError, match="no such folder"):
        check(tmp_path, "mine", own="tasks")
    folder.mkdir()
    file = folder / "mine.yaml"
    file.write_text("task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: tasks/mine.jsonl}}\n")
    with pytest.raises(UserError, match=r"the data file of the task mine is not there: tasks/mine\.jsonl"):
        check(tmp_path, "mine", own="tasks")
    (folder / "mine.jsonl").write_text("{}\n")
    check(tmp_path, "mine", "facts", own="tasks")
    with pytest.raises(UserError, match="no such task: your"):
        check(tmp_path, "your", own="tasks")
    (folder / "other.yaml").write_text("task: facts\n")
    with pytest.raises(UserError, match="has the name of one that comes with preftune: facts"):
        check(tmp_path, "mine", own="tasks")
    (folder / "other.yaml").write_text("task: [\n")
    with pytest.raises(UserError, match="the task file cannot be read"):
        check(tmp_path, "mine", own="tasks")


def test_it_is_light(tmp_path: Path) -> None:
    """The parent must not load lm-eval, datasets or torch for it."""
    code = (
        "import sys; from pathlib import Path; from preftune.task_check import *\n"
        f"from preftune.workspace import Workspace; p = Path({str(tmp_path)!r})\n"
        "try: check_tasks(Evaluation(tasks=('facts', 'ifeval', 'mmlu')), Workspace(p, p))\n"
        "except UserError: pass\n"
        "print(sorted({'torch', 'lm_eval', 'datasets', 'nltk', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    env = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path), "HF_DATASETS_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
