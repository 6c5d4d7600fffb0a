"""The command line: exit codes, one clear message, no stack trace, in seconds, before any training."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import preftune


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    make_project(folder)
    (folder / "plain").mkdir()
    (folder / "plain/config.json").write_text("{}")
    (folder / "plain/model.safetensors").write_text("")
    (folder / "plain/tokenizer_config.json").write_text("{}")
    (folder / "questions.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    (folder / "empty.jsonl").write_text("")
    surrogate = '{"prompt": "Q", "worse \\ud83d": "A", "better": "B"}'
    (folder / "half.jsonl").write_text(surrogate + "\n")
    pair = '{"prompt": "Q%d", "chosen": "yes", "rejected": "no"}'
    (folder / "mostly-bad.jsonl").write_text("\n".join([pair % i for i in range(4)] + ["[]"] * 6))
    (folder / "recipes/tiny/twice.yaml").write_text("dataset_name: x\nbeta: 0.1\nbeta: 0.2\n")
    (folder / "recipes/tiny/tag.yaml").write_text("dataset_name: !!python/object/apply:os.system [ls]\n")
    return folder


R = "recipes/tiny/config.yaml"
BAD: dict[str, tuple[list[str], list[str]]] = {
    "unknown key": ([R, "--betta=0.2"], ["betta", "beta?"]),
    "negative beta": ([R, "--beta=-1"], ["beta", "above 0"]),
    "not a number": ([R, "--beta=.nan"], ["beta", "finite"]),
    "repeated key": (["recipes/tiny/twice.yaml"], ["beta", "twice", "line 3"]),
    "python tag": (["recipes/tiny/tag.yaml"], ["tag", "line 1"]),
    "missing recipe": (["recipes/none.yaml"], ["no such recipe", "recipes/none.yaml"]),
    "missing data": ([R, "--dataset_name=none.jsonl"], ["no such file", "none.jsonl"]),
    "no chosen": (
        [R, "--dataset_name=questions.jsonl", "--dataset_test_split=null"],
        ["chosen", "question", "columns:"],
    ),
    "half a character": (
        [R, "--dataset_name=half.jsonl", "--dataset_test_split=null"],
        ["chosen and rejected", "\\ud83d", "columns:"],
    ),
    "empty file": ([R, "--dataset_name=empty.jsonl"], ["empty"]),
    "no template": ([R, "--model_name_or_path=plain"], ["chat template", "plain"]),
    "base model": ([R, "--model_name_or_path=meta-llama/Llama-2-7b"], ["meta-llama/Llama-2-7b-chat-hf", "base model"]),
    "missing split": ([R, "--dataset_test_split=exam"], ["exam", "test, train"]),
    "output outside": ([R, "--output_dir=../elsewhere"], ["output_dir", "leaves the project"]),
    "output unwritable": ([R, "--output_dir=recipes"], ["output_dir", "recipes"]),
    "not an override": ([R, "stray"], ["stray", "--key=value"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_message(case: str, project: Path) -> None:
    arguments, words = BAD[case]
    began = time.monotonic()
    done = preftune("run", *arguments, cwd=project)
    seconds = time.monotonic() - began
    assert done.returncode == 2, done.stderr
    assert all(w in done.stderr for w in words), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) <= 3, "one message"
    assert seconds < 20, "nothing was started (about 1 s on an idle machine)"
    assert not (project / ".preftune/partial/train").exists()


def test_json_error_is_one_object(project: Path) -> None:
    done = preftune("run", R, "--betta=1", "--json", cwd=project)
    assert done.returncode == 2
    assert set(json.loads(done.stdout)) == {"error", "where", "advice"}


def test_check_tells_the_plan(project: Path) -> None:
    done = preftune("check", R, "--json", "--gradient_accumulation_steps=2", cwd=project)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"errors", "warnings", "keys", "plan"}
    plan = found["plan"]
    # 24 pairs, batches of 4 → 6 batches, accumulated by 2 → 3 steps of 8 pairs, one epoch
    assert (plan["train_pairs"], plan["test_pairs"], plan["steps"], plan["effective_batch"]) == (24, 12, 3, 8)
    assert plan["reused"]["train"] is False


AUDIT = {
    "sources": {"id", "split", "read", "kept", "dropped", "warned", "length_accuracy", "notices"},
    "mixture": {"train", "test", "shares", "drawn", "dropped", "warned", "notices"},
}


def test_audit_prints_the_documented_object_and_writes_its_page(project: Path) -> None:
    done = preftune("audit", R, "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"sources", "mixture", "quarantine", "truncation", "page"}
    assert set(found["mixture"]) == AUDIT["mixture"]
    assert [(s["split"], s["read"], s["kept"]) for s in found["sources"]] == [("train", 24, 24), ("test", 12, 12)]
    assert all(set(s) == AUDIT["sources"] for s in found["sources"])
    assert (found["mixture"]["train"], found["mixture"]["test"]) == (24, 12)
    assert found["truncation"]["pairs"] == 24 and found["truncation"]["max_length"] == 128
    assert Path(found["quarantine"]).read_text() == ""
    assert "<html" in Path(found["page"]).read_text()
    told = preftune("audit", R, cwd=project)
    assert told.returncode == 0 and "audit.html" in told.stdout and "rows read" in told.stdout


def test_an_audit_of_data_that_stops_a_run_ends_with_2(project: Path) -> None:
    arguments = (R, "--dataset_name=mostly-bad.jsonl", "--dataset_test_split=null", "--json")
    done = preftune("audit", *arguments, cwd=project)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert found["sources"][0]["dropped"] == {"not_an_object": 6}
    assert any("a run stops here: 6 of 10 rows" in n for n in found["mixture"]["notices"])
    assert preftune("check", *arguments, cwd=project).returncode == 2


def test_datasets_prints_the_registry(project: Path) -> None:
    done = preftune("datasets", "--json", cwd=project)
    found = json.loads(done.stdout)["datasets"]
    assert {"Anthropic/hh-rlhf", "OpenAssistant/oasst1"} <= {d["id"] for d in found}
    documented = (Path(__file__).parent.parent / "docs/json.md").read_text().partition("`preftune datasets --json`")[2]
    assert all(f"`{key}`" in documented for key in found[0])
    assert "Anthropic/hh-rlhf" in preftune("datasets", cwd=project).stdout


def test_init_writes_a_recipe_that_passes_the_check(project: Path) -> None:
    done = preftune("init", "my-first-dpo", cwd=project)
    assert done.returncode == 0, done.stderr
    text = (project / "recipes/my-first-dpo/config_starter.yaml").read_text()
    assert "output_dir: data/my-first-dpo" in text
    assert preftune("init", "my-first-dpo", cwd=project).returncode == 2, "an existing recipe is kept"
    assert preftune("init", "../x", cwd=project).returncode == 2
    checked = preftune("check", "recipes/my-first-dpo/config_starter.yaml", "--json", cwd=project)
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["plan"]["train_pairs"] >= 128


def test_runs_before_the_first_run(tmp_path: Path) -> None:
    done = preftune("runs", "--json", cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"runs": []})


def test_help_names_every_command(tmp_path: Path) -> None:
    done = preftune("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(c in done.stdout for c in ("init", "check", "audit", "datasets", "run", "runs", "ui"))
