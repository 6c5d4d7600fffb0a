"""The file of token ids: what TRL's DPOTrainer makes of the same rows, and the step that writes it."""

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from test_lengths import GEMMA, KINDS, LLAMA3, MISTRAL, PAIRS, PHI3, TEMPLATE, pair
from transformers import AutoTokenizer
from trl import DPOTrainer

from preftune.data.lengths import count
from preftune.data.pair_tokenizer import pair_tokenizer
from preftune.data.pairs import Pair
from preftune.data.steps import left_out, make_lengths, tokens
from preftune.data.token_file import COLUMNS, read_tokens, write_tokens
from preftune.models import find_model
from preftune.recipe import load_recipe
from preftune.store import StepResult
from preftune.tokens import is_of
from preftune.workspace import Workspace


def write(path: Path, pairs: list[Pair]) -> Path:
    path.write_text("".join(p.model_dump_json() + "\n" for p in pairs))
    return path


def trl_ids(folder: Path, template: str, pairs: list[Pair], **settings: Any) -> list[dict[str, Any]]:
    """What the trainer's collator gets, by TRL's own function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    data = Dataset.from_list([p.model_dump(include={"prompt", "chosen", "rejected"}) for p in pairs])
    asked: Any = SimpleNamespace(**{"dataset_num_proc": None, "max_length": None} | settings)
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    made: Any = DPOTrainer._prepare_dataset(trainer, data, tokenizer, asked, "train")
    return made.select_columns(list(COLUMNS)).to_list()


@pytest.mark.parametrize(
    ("kind", "template"),
    [
        ("fast", TEMPLATE),
        ("llama3", LLAMA3),
        ("llama2", MISTRAL),
        ("mistral", MISTRAL),
        ("strips", PHI3),
        ("qwen2", TEMPLATE),
        ("gemma", GEMMA),
    ],
)
def test_the_file_is_the_dataset_that_trl_would_make(tmp_path: Path, kind: str, template: str) -> None:
    """One and several turns, with and without a system message, other scripts, special tokens in the text."""
    folder = KINDS[kind](tmp_path / "model")
    pairs = [p for p in PAIRS if template is not GEMMA or p.prompt[0]["role"] != "system"]
    found = count(
        write(tmp_path / "p.jsonl", pairs), pair_tokenizer(folder, template), None, False, tmp_path / "p.arrow"
    )
    data = Dataset.from_file(str(tmp_path / "p.arrow"))
    assert sum(found["counts"].values()) == 0
    assert data.select_columns(list(COLUMNS)).to_list() == trl_ids(folder, template, pairs)
    assert type(data[0]["prompt_ids"]) is list and type(data[0]["prompt_ids"][0]) is int  # the collator adds lists


def test_what_trl_drops_is_not_in_the_file(tiny_model: Path, tmp_path: Path) -> None:
    """Whole sequences of the others: the collator cuts, as max_length and its end may differ."""
    rng = random.Random(0)
    pairs = [
        pair(f"{i} " * rng.randrange(1, 40), f"{i} " * rng.randrange(1, 40), "no").model_copy(update={"row_id": str(i)})
        for i in range(2300)
    ]
    tokenizer, path = pair_tokenizer(tiny_model, TEMPLATE), write(tmp_path / "p.jsonl", pairs)
    found = count(path, tokenizer, 64, False, tmp_path / "p.arrow")
    assert found["counts"]["prompt_fills_max_length"] > 100 and found["counts"]["identical_after_cut"] == 0
    expected = trl_ids(tiny_model, TEMPLATE, pairs, max_length=64, truncation_mode="keep_start")
    data = Dataset.from_file(str(tmp_path / "p.arrow"))
    assert data.select_columns(list(COLUMNS)).to_list() == expected
    gone = set(found["indices"]["prompt_fills_max_length"])
    assert data["id"][:] == [f"s {i}" for i in range(2300) if i not in gone]
    for n in (0, 1, 900, 1400, len(expected), 10_000):  # the batches end elsewhere
        assert read_tokens(tmp_path / "p.arrow", n) == [tuple(row[c] for c in COLUMNS) for row in expected[:n]]


def test_no_pairs_at_all(tmp_path: Path) -> None:
    with write_tokens(tmp_path / "empty.arrow"):
        pass
    assert read_tokens(tmp_path / "empty.arrow", 5) == []
    assert Dataset.from_file(str(tmp_path / "empty.arrow")).column_names == ["id", *COLUMNS]


def test_ids_of_another_template_are_noticed(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.arrow"
    count(write(tmp_path / "p.jsonl", PAIRS), pair_tokenizer(tiny_model, TEMPLATE), None, False, file)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert is_of(tokenizer, file, PAIRS)
    assert is_of(tokenizer, file, PAIRS[:2])
    assert not is_of(tokenizer, file, PAIRS[1:3])
    tokenizer.chat_template = TEMPLATE.replace("assistant", "model")
    assert not is_of(tokenizer, file, PAIRS)


@pytest.fixture
def make_step(make_project: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[StepResult, Workspace]]:
    """The lengths step on a mixture of these pairs, on both sides."""

    def make(pairs: list[Pair], **keys: Any) -> tuple[StepResult, Workspace]:
        recipe = load_recipe(make_project(tmp_path, **keys), {})
        workspace = Workspace(tmp_path, tmp_path / ".preftune").make()
        info = {"train_sha256": "a", "test_sha256": "b"}
        mixture = StepResult(step="mixture", key="m", digest="d", info=info)
        mixture.folder(workspace).mkdir(parents=True)
        for side in ("train", "test"):
            write(mixture.folder(workspace) / f"{side}.jsonl", pairs)
        model = find_model(recipe, workspace)
        assert model is not None
        return make_lengths(workspace, recipe, model, mixture), workspace

    return make


def test_the_step_writes_both_sides(make_step: Callable[..., tuple[StepResult, Workspace]]) -> None:
    result, workspace = make_step(PAIRS)
    files, gone = tokens(result, workspace), left_out(result, workspace)
    assert files is not None and gone == {"train": [], "test": []}
    assert [len(read_tokens(Path(files[side]), 99)) for side in ("train", "test")] == [len(PAIRS)] * 2
    manifest = json.loads((result.folder(workspace) / "manifest.json").read_text())
    assert {"train.arrow", "test.arrow"} <= set(manifest["files"])


def test_a_refusal_in_the_middle_leaves_no_file(make_step: Callable[..., tuple[StepResult, Workspace]]) -> None:
    """The template refuses a system message, which only the last of 2001 pairs has: two batches were written."""
    pairs = [PAIRS[0]] * 2000 + [pair("a", "b", "c", system="be brief")]
    result, workspace = make_step(pairs, chat_template=GEMMA)
    assert "System role not supported" in result.info["not_counted"]
    assert tokens(result, workspace) is None and left_out(result, workspace) is None
    assert not list(result.folder(workspace).glob("*.arrow"))
