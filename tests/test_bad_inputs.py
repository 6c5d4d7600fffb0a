"""Every bad input that docs/reliability.md lists, through what `preftune check` does, and the message that it gets."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_faults import training_job

from preftune import summary
from preftune.data.steps import audit_data, make_data, make_lengths
from preftune.errors import UserError
from preftune.plan import make_plan
from preftune.preflight import preflight
from preftune.workspace import find_workspace

Rows = list[dict[str, Any]]
PAIRS = "recipes/tiny/pairs"
LONG = "word " * 400


@dataclass
class Found:
    """What a check says."""

    error: str = ""
    dropped: dict[str, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    first: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def check(make_project: Callable[..., Path], tmp_path: Path) -> Callable[..., Found]:
    """Checks the tiny project (24 pairs) after an edit of its training rows, its recipe's keys, or its text."""
    recipe = make_project(tmp_path)

    def run(rows: Callable[[Rows], Rows | None] | None = None, text: str = "", **keys: Any) -> Found:
        if rows:
            path = tmp_path / PAIRS / "train.jsonl"
            data = [json.loads(line) for line in path.read_text().splitlines()]
            changed = rows(data)
            path.write_text("".join(json.dumps(r) + "\n" for r in (data if changed is None else changed)))
        flat = {k: v for k, v in (json.loads(recipe.read_text()) | keys).items() if v is not None}
        recipe.write_text(text + "".join(f"{k}: {json.dumps(v)}\n" for k, v in flat.items()))
        workspace = find_workspace(tmp_path)
        try:
            loaded, model, sources = preflight(recipe, {}, workspace)
            checked, mixture = make_data(workspace, loaded, sources)
            assert model is not None
            lengths = make_lengths(workspace, loaded, model, mixture)
            make_plan(loaded, workspace, model, mixture, lengths)
        except UserError as e:
            return Found(error=str(e))
        counts = [*(s.info["train"]["dropped"] for s in checked), lengths.info["train"]["counts"]]
        dropped = {name: n for each in (*counts, mixture.info["dropped"]) for name, n in each.items() if n}
        told = [*loaded.notices, *summary.data_notices(checked, mixture, lengths)]
        pairs = (mixture.folder(workspace) / "train.jsonl").read_text().splitlines()
        first = next((p for p in map(json.loads, pairs) if p["row_id"].endswith(":1")), {})
        return Found(dropped=dropped, told=told, first=first)

    return run


def first(**columns: Any) -> Callable[[Rows], None]:
    """Sets columns of the first row."""

    def edit(rows: Rows) -> None:
        rows[0] |= columns

    return edit


def said(role: str, content: Any) -> Rows:
    return [{"role": role, "content": content}]


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def mixture_of_weight(weight: float) -> dict[str, Any]:
    datasets = [{"id": PAIRS, "weight": weight}]
    return {"dataset_name": None, "dataset_test_split": None, "dataset_mixture": {"datasets": datasets}}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"beta": -1}, "beta: -1 is out of range: it must be above 0"),
        ({"beta": 0}, "beta: 0 is out of range"),
        ({"learning_rate": 0}, "learning_rate: 0 is out of range"),
        ({"learning_rate": 1e6}, "learning_rate: 1e+06 is out of range"),
        ({"learning_rate": "5e-7"}, "learning_rate: '5e-7' is str, float is needed"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: 0 is out of range: it must be at least 1"),
        ({"text": "max_grad_norm: .nan\n"}, "line 1: .nan is not a finite number"),
        ({"text": "beta: 0.2\n"}, "the key 'beta' stands twice"),
        ({"text": "x: !!python/object/apply:os.system ['true']\n"}, "YAML tags that build objects are refused"),
        (mixture_of_weight(0), "weight: Input should be greater than 0 (given: 0)"),
        (mixture_of_weight(-0.5), "weight: Input should be greater than 0 (given: -0.5)"),
        ({"output_dir": "../../x"}, "output_dir '../../x' leaves the project"),
        ({"output_dir": "/x"}, "output_dir '/x' leaves the project"),
        ({"output_dir": "data/link/x"}, "output_dir 'data/link/x' leaves the project"),
        ({"hub_model_id": "hf_" + "a" * 34}, "this looks like an access token"),
        ({"max_length": 16}, "24 of 24 training pairs cannot be trained on at max_length=16: 24 × the prompt alone"),
    ],
)
def test_recipes(check: Callable[..., Found], tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link").symlink_to("/tmp")
    found = check(**keys)
    assert message in found.error
    assert "\n  → " in found.error, "it says what to do"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (lambda r: r[0].update(rejected=r[0]["chosen"]), "identical"),
        (first(chosen=said("assistant", "  ")), "empty_answer"),
        (first(chosen=said("user", "and then?")), "last_turn_not_assistant"),
        (first(prompt=said("wizard", "Who are you?")), "unknown_role"),
        (first(chosen=said("assistant", "done<|im_end|>")), "control_tokens"),
        (first(chosen=said("assistant", None)), "wrong_type"),
        (first(chosen=said("assistant", 5)), "wrong_type"),
        (first(chosen=7, rejected=8), "wrong_type"),
        (lambda r: [{k: v for k, v in r[0].items() if k != "rejected"}, *r[1:]], "missing_answer"),
        (first(chosen=said("assistant", LONG + "a"), rejected=said("assistant", LONG + "b")), "identical_after_cut"),
        (first(prompt=said("user", LONG)), "prompt_fills_max_length"),
        (lambda r: [*r, r[0]], "duplicate"),
        (lambda r: [*r, swapped(r[0])], "contradiction"),
    ],
)
def test_rows(check: Callable[..., Found], rows: Any, reason: str) -> None:
    """Left out, counted by reason, and told."""
    found = check(rows)
    assert (found.error, found.dropped) == ("", {reason: 1})
    assert any(reason in t for t in found.told)


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        (lambda _: [], {}, "the file is empty"),
        (lambda r: [{k: v for k, v in x.items() if k != "rejected"} for x in r], {}, "no column chosen and rejected"),
        (lambda r: r[:1], {}, "one pair"),
        (lambda r: r[:3], {"dataloader_drop_last": True}, "3 pairs do not fill one batch of 4"),
    ],
)
def test_datasets(check: Callable[..., Found], rows: Any, keys: dict[str, Any], message: str) -> None:
    found = check(rows, **keys)
    assert message in found.error
    assert "\n  → " in found.error


def test_fewer_pairs_than_a_batch_are_one_smaller_step(check: Callable[..., Found]) -> None:
    assert check(lambda r: r[:3]).error == ""


def test_prompts_of_the_held_out_side(check: Callable[..., Found], tmp_path: Path) -> None:
    train, test = (tmp_path / PAIRS / f"{side}.jsonl" for side in ("train", "test"))
    test.write_text(test.read_text() + train.read_text().splitlines()[0] + "\n")
    found = check()
    assert found.dropped == {"prompt_held_out": 1}
    assert any("the prompt is held out" in t for t in found.told)


def test_the_longer_answer_is_chosen(check: Callable[..., Found]) -> None:
    """A notice: it may be what people prefer, or only what the model learns."""

    def rows(_: Rows) -> Rows:
        return [
            {
                "prompt": said("user", f"Question {i}?"),
                "chosen": said("assistant", f"A long and careful answer, number {i}, with reasons."),
                "rejected": said("assistant", f"No, {i}."),
            }
            for i in range(60)
        ]

    found = check(rows)
    assert found.dropped == {}
    assert any("the longer one is chosen in 100% of the pairs" in t for t in found.told)


def test_one_answer_as_text_the_other_as_messages(check: Callable[..., Found]) -> None:
    found = check(first(chosen="Just text."))
    assert (found.error, found.dropped) == ("", {})
    assert found.first["chosen"] == said("assistant", "Just text.")


def test_markup_is_text(check: Callable[..., Found], tmp_path: Path) -> None:
    """It is trained on as it stands, and escaped where it is shown."""
    found = check(first(chosen=said("assistant", "<script>alert(1)</script>")))
    assert found.first["chosen"] == said("assistant", "<script>alert(1)</script>")
    workspace = find_workspace(tmp_path)
    loaded, model, sources = preflight(tmp_path / "recipes/tiny/config.yaml", {}, workspace)
    page = audit_data(workspace, loaded, model, sources)[0].folder(workspace) / "audit.html"
    assert "<script>alert(1)" not in page.read_text()


def edited_model(model: Path, folder: Path, **changes: Any) -> Path:
    """A copy with other entries in tokenizer_config.json; None takes the chat template away."""
    shutil.copytree(model, folder)
    if "chat_template" in changes:
        (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {k: v for k, v in changes.items() if v}))
    return folder


def test_no_chat_template(check: Callable[..., Found], tiny_model: Path, tmp_path: Path) -> None:
    model = edited_model(tiny_model, tmp_path / "model", chat_template=None)
    found = check(model_name_or_path=str(model))
    assert "chat template" in found.error and "chat_template" in found.error.partition("→")[2]


def test_padding_that_is_the_end_of_text(tiny_model: Path, tmp_path: Path) -> None:
    """Masks come from lengths, not from the padding's id: the same losses."""
    from preftune.training import train

    losses = []
    for name, model in (("a", tiny_model), ("b", edited_model(tiny_model, tmp_path / "m", pad_token="<|im_end|>"))):
        job = training_job(model, tmp_path / name / "job", num_train_epochs=1.0) | {"model": {}}
        train(job)
        lines = (Path(job["folder"]) / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["metrics"]["train/loss"] for line in lines])
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
