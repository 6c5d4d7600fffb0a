"""A reward model as judge: what is refused before it is loaded, and scores as transformers computes them."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_judges import judged, lines, suite, user, write_answers

from preftune.content_cache import ContentCache
from preftune.errors import UserError
from preftune.evaluation_schema import RewardModelJudge
from preftune.judges.find import find_judge
from preftune.judges.interface import Comparison, Question
from preftune.judges.reward_model import RewardModel
from preftune.judges.reward_scores import score
from preftune.workspace import Workspace


def build(source: Path, target: Path) -> Path:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(1)
    model = LlamaForSequenceClassification(LlamaConfig.from_pretrained(source, num_labels=1))
    torch.nn.init.normal_(model.score.weight, std=5.0)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tiny_model, tmp_path_factory.mktemp("reward") / "tiny-reward")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's work in this very process, which spares the start of another one."""

    def run(command: list[str], **_: Any) -> None:
        score(json.loads(Path(command[-1]).read_text()))

    monkeypatch.setattr("preftune.judges.reward_model.run_child", run)


@pytest.fixture
def copy(reward_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reward_model, tmp_path / "copy"))


def judge_of(folder: Path, model: Path, **settings: Any) -> RewardModel:
    section = RewardModelJudge(kind="reward_model", model=str(model), **settings)
    found = find_judge(section, Workspace(folder, folder / "home"))
    cache = ContentCache(folder / "cache", "judgements", print)
    return RewardModel(found, cache, folder / "cache", folder, folder / "log.txt", print)


def by_hand(model_path: Path, prompt: list[dict[str, str]], text: str, max_length: int = 512) -> float:
    """One conversation alone, without a batch, in transformers' own words."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForSequenceClassification.from_pretrained(model_path).eval()
    messages = [*prompt, {"role": "assistant", "content": text}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        return model(ids[:, -max_length:]).logits.item()


LONG = "It is a long one. " * 40
COMPARED = [
    Comparison(user("One?"), "yes", LONG),
    Comparison(user("One?"), LONG, "yes"),
    Comparison(user("One?"), "yes", "no"),
    Comparison(user("Two?"), "the same", "the same"),
    Comparison(
        [*user("1?"), {"role": "assistant", "content": "a"}, *user("2?")],
        "x",
        "x",
        second_prompt=[*user("1?"), {"role": "assistant", "content": "b"}, *user("2?")],
    ),
]


@pytest.mark.parametrize(("batch_size", "max_length"), [(8, 2048), (2, 60)])
@pytest.mark.usefixtures("here")
def test_scores_are_transformers_own(batch_size: int, max_length: int, reward_model: Path, tmp_path: Path) -> None:
    mine = judge_of(tmp_path, reward_model, batch_size=batch_size, max_length=max_length)
    found = mine.compare(COMPARED)
    for compared, judgement in zip(COMPARED, found, strict=True):
        a = by_hand(reward_model, list(compared.prompt), compared.first, max_length)
        b = by_hand(reward_model, list(compared.second_prompt or compared.prompt), compared.second, max_length)
        if compared.identical:
            assert judgement.outcome == 0.5
            continue
        assert abs(a - b) > 1e-3  # else this would prove nothing
        assert judgement.outcome == (1.0 if b > a else 0.0)
        assert judgement.orders[0] == judgement.orders[1]
        assert not judgement.flipped
        scores = [float(s) for s in judgement.orders[0].text.split(" : ")]
        assert scores == pytest.approx([a, b], rel=1e-4, abs=1e-5)
    # yes and LONG stand in three comparisons and are scored once; "the same" is not scored
    assert (mine.ledger.requests, mine.ledger.cached, mine.ledger.identical) == (5, 0, 1)
    assert not (tmp_path / "reward_model").exists()


@pytest.mark.usefixtures("here")
def test_what_is_known_is_not_scored_again(reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = judge_of(tmp_path, reward_model).compare(COMPARED)
    monkeypatch.setattr("preftune.judges.reward_model.run_child", lambda *_, **__: pytest.fail("a child was started"))
    again = judge_of(tmp_path, reward_model)
    assert again.compare(COMPARED) == first
    assert (again.ledger.requests, again.ledger.cached) == (0, 5)


def test_a_whole_run(reward_model: Path, tmp_path: Path) -> None:
    write_answers(tmp_path)
    for who, text in (("sft", "3"), ("policy", "6")):
        row = suite("alpaca_eval", "a1", text, reference=["4"])
        (tmp_path / who / "suite_answers.jsonl").write_text(json.dumps(row) + "\n")
    section = RewardModelJudge(kind="reward_model", model=str(reward_model))
    summary = judged(section, tmp_path)
    rows = lines(tmp_path / "out/judgements.jsonl")
    assert [(r["suite"], r["pair"]) for r in rows] == [
        ("held_out", ["sft", "policy"]),
        ("held_out", ["sft", "policy"]),
        ("alpaca_eval", ["reference", "sft"]),
        ("alpaca_eval", ["reference", "policy"]),
    ]
    assert all(r["outcome"] in (0.0, 1.0) and r["orders"][0] == r["orders"][1] for r in rows)
    assert lines(tmp_path / "out/grades.jsonl") == []
    kept = {k: summary[k] for k in ("kind", "requests", "errors", "cost", "stopped")}
    assert kept == {"kind": "reward_model", "requests": 7, "errors": {}, "cost": None, "stopped": None}


def test_it_does_not_grade(reward_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot grade"):
        judge_of(tmp_path, reward_model).grade([Question(user("q"), "x")])


@pytest.mark.usefixtures("here")
def test_a_score_that_is_not_finite_is_no_verdict(copy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights["score.weight"] *= math.nan
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    mine = judge_of(tmp_path, copy)
    (found,) = mine.compare(COMPARED[:1])
    assert found.outcome is None
    assert [o.error for o in found.orders] == ["not_finite"] * 2
    assert mine.ledger.errors == {"not_finite": 2}
    mine.compare(COMPARED[:1])
    assert mine.ledger.cached == 0


@pytest.mark.usefixtures("here")
def test_a_conversation_that_the_template_refuses(copy: Path, tmp_path: Path) -> None:
    template = (copy / "chat_template.jinja").read_text()
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (copy / "chat_template.jinja").write_text(refuses + template)
    mine = judge_of(tmp_path, copy)
    system = [{"role": "system", "content": "Be kind."}, *user("One?")]
    found = mine.compare([COMPARED[2], Comparison(system, "yes", "no")])
    assert found[0].outcome is not None
    assert [o.error for o in found[1].orders] == ["template"] * 2


def edit(path: Path, **keys: Any) -> None:
    config = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def _no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=None)


def _only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: shutil.rmtree(f), "no such folder"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (_only_bin, "pickled"),
        (lambda f: edit(f / "config.json", id2label={"0": "a", "1": "b"}), "2 outputs"),
        (lambda f: edit(f / "config.json", id2label=None, num_labels=None), "2 outputs"),
        (lambda f: edit(f / "config.json", architectures=["LlamaForCausalLM"]), "holds LlamaForCausalLM"),
        (_no_template, "no chat template"),
        (_adapter, "an adapter"),
        (lambda f: (f / "config.json").unlink(), "no model"),
        (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    ],
)
def test_what_is_no_reward_model(damage: Callable[[Path], None], words: str, copy: Path, tmp_path: Path) -> None:
    damage(copy)
    with pytest.raises(UserError, match=words) as told:
        judge_of(tmp_path, copy)
    assert told.value.advice


@pytest.mark.usefixtures("here")
def test_a_model_without_its_head_is_refused(tiny_model: Path, copy: Path, tmp_path: Path) -> None:
    """transformers would make the missing weights up at random, and say so in a log only."""
    shutil.copy(tiny_model / "model.safetensors", copy / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks weights: score\.weight"):
        judge_of(tmp_path, copy).compare(COMPARED[:1])


def test_code_of_its_own_is_not_run(copy: Path, tmp_path: Path) -> None:
    (copy / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit(
        copy / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"},
    )
    with pytest.raises(UserError, match="cannot be loaded"):
        judge_of(tmp_path, copy).compare(COMPARED[:1])
    assert not (tmp_path / "ran").exists()


def test_its_content_is_its_key(reward_model: Path, copy: Path, tmp_path: Path) -> None:
    def digest(model: Path, **settings: Any) -> str:
        section = RewardModelJudge(kind="reward_model", model=str(model), **settings)
        return find_judge(section, Workspace(tmp_path, tmp_path / "home")).digest

    assert digest(copy) == digest(reward_model) == digest(reward_model, batch_size=1)
    assert digest(copy, max_length=99) != digest(copy)
    edit(copy / "config.json", rope_theta=12345.0)
    assert digest(copy) != digest(reward_model)
