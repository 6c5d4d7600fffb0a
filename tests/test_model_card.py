"""The model card: what the hub reads, what people read, and what must never stand in it."""

import re
from pathlib import Path
from typing import Any

import pytest

from preftune.markdown import code, markdown
from preftune.model_card import CardInput, block, render_card, without_folders
from preftune.models import StartingModel
from preftune.recipe import resolve
from preftune.store import StepResult

ULTRA = "HuggingFaceH4/ultrafeedback_binarized"


def both(name: str, sft: float, policy: float) -> tuple[dict[str, float], dict[str, float]]:
    return tuple({name: v, f"{name}_lo": v - 0.1, f"{name}_hi": v + 0.1} for v in (sft, policy))  # pyright: ignore


VERDICT = {
    "outcome": "promote",
    "reasons": ["reward accuracy 80.0% on 90 held-out pairs", "no damage measure exceeds its bar"],
    "pairs": 90,
    "answers": 32,
    "metrics": dict(zip(("sft", "policy"), both("stop_rate", 0.5, 0.65), strict=True)),
    "differences": {"stop_rate": [0.15, -0.05, 0.3]},
    "damages": [],
}


def results(*sources: dict[str, Any], adapter: bool = True) -> dict[str, Any]:
    def step(name: str, **info: Any) -> StepResult:
        return StepResult(step=name, key=f"{name}-key", digest=f"{name}-digest", info=info)

    names = [s["id"] for s in sources]
    counts = {n: 100 + i for i, n in enumerate(names)}
    mixture = {"train": sum(counts.values()), "test": 90, "by_source": counts, "notices": []}
    mixture |= {"shares": {n: c / mixture["train"] for n, c in counts.items()}}
    figures = {"steps": 16, "max_steps": 16, "pairs": 128, "epochs": 1.0, "world_size": 1, "adapter": adapter}
    train = {**figures, "trainable_parameters": 4_884_480, "parameters": 139_400_000}
    return {
        "source": [step("source", **s) for s in sources],
        "mixture": step("mixture", **mixture, train_sha256="a" * 64, test_sha256="b" * 64),
        "lengths": step("lengths", not_counted="no tokenizer.json in /home/me/models"),
        "train": step("train", **train),
    }


def source(name: str, digest: str) -> dict[str, Any]:
    side = {"split": "train", "read": 110, "kept": 100, "dropped": {"duplicate": 7, "empty_answer": 3}}
    return {"id": name, "source_digest": digest, "notices": [], "train": side, "test": {**side, "split": "test"}}


def card(tmp_path: Path, *, datasets: dict[str, str] | None = None, **more: Any) -> CardInput:
    """A card's input; `datasets`: id → digest."""
    datasets = datasets or {ULTRA: f"{ULTRA}@0123456789abcdef0123456789abcdef01234567"}
    keys = {"use_peft": True, "lora_r": 4, **more.pop("keys", {})}
    entries = [{"id": name, "test_split": "test"} for name in datasets]
    recipe = resolve({**keys, "dataset_mixture": {"datasets": entries}}, Path("recipes/demo/config.yaml"))
    model = StartingModel("my/sft", "my/sft", "c0ffee", "model-digest", "{{ x }}", str(tmp_path), weights="w")
    made = {"place": "me/demo", "kind": "adapter", "recipe": recipe, "model": model, "verdict": VERDICT}
    return CardInput(**{**made, "results": results(*(source(n, d) for n, d in datasets.items())), **more})


def head(text: str) -> dict[str, Any]:
    """What the hub reads, by the hub's own client."""
    from huggingface_hub import ModelCard

    return ModelCard(text).data.to_dict()


def test_what_the_hub_reads(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: llama3.2\nlicense_link: LICENSE\n---\n# x\n"
    )
    assert head(render_card(card(tmp_path))) == {
        "base_model": "my/sft",
        "base_model_relation": "adapter",
        "datasets": [ULTRA],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["dpo", "trl", "preftune", "lora"],
        "license": "other",
        "license_name": "llama3.2",
        "license_link": "LICENSE",
    }
    merged = head(render_card(card(tmp_path, kind="merged")))
    assert (merged["library_name"], merged["base_model_relation"]) == ("transformers", "finetune")
    full = head(render_card(card(tmp_path, kind="full", results=results(source(ULTRA, "x"), adapter=False))))
    assert full["tags"] == ["dpo", "trl", "preftune"]
    assert "datasets" not in full, "bytes on this machine are no dataset of the hub, whatever they are called"


@pytest.mark.parametrize("text", [None, "# no head", "---\nlicense: [mit\n---\n", "---\n- a list\n---\n", "\udcff"])
def test_a_starting_model_whose_licence_is_not_known(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text, errors="surrogateescape")
    made = render_card(card(tmp_path))
    assert "license" not in head(made)
    assert "Unknown: check the starting model's." in made


def test_the_embedded_model(tmp_path: Path) -> None:
    name = "embedded/SmolLM2-135M-Instruct"
    model = StartingModel(name, "/home/me/.preftune/models/SmolLM2", None, "d", "t", str(tmp_path), weights="w")
    made = render_card(card(tmp_path, model=model))
    found = head(made)
    assert (found["base_model"], found["license"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert "not the same numbers" in made and "/home" not in made


@pytest.mark.parametrize(
    ("outcome", "said"),
    [("promote", "can replace"), ("reject", "use the starting model"), ("inconclusive", "do not decide")],
)
def test_the_verdict_is_said_plainly(tmp_path: Path, outcome: str, said: str) -> None:
    made = render_card(card(tmp_path, verdict={**VERDICT, "outcome": outcome}))
    assert f"## Verdict: {outcome}\n" in made
    assert said in made.split("## Measures")[0]
    assert "- no damage measure exceeds its bar\n" in made


def test_a_policy_that_was_not_measured(tmp_path: Path) -> None:
    made = render_card(card(tmp_path, verdict=None))
    assert "## No verdict yet\n" in made and "## Measures" not in made and "\n\n\n" not in made
    assert "## Loading" in made and head(made)["base_model"] == "my/sft"


def test_the_tables(tmp_path: Path) -> None:
    made = render_card(card(tmp_path))
    rows = [line for line in made.splitlines() if line.startswith("|")]
    assert (
        "| Answers that stop by themselves (share, higher is better) | 50.0% (40.0% to 60.0%) "
        "| 65.0% (55.0% to 75.0%) | +15.0 points (−5.0 to +30.0) |" in rows
    )
    assert (
        f"| `{ULTRA}` | `0123456789abcdef0123` | MIT | `train` | train | 110 | 100 | 7 `duplicate`, 3 `empty_answer` |"
        in rows
    )
    assert [r for r in rows if "| `test` | held out |" in r]
    assert "| trained weights (digest) | `train-digest` |" in rows
    assert (
        "\nbeta: 0.1, learning\\_rate: 1e-06, loss\\_type: sigmoid, max\\_length: 1024, seed: 42, lora\\_r: 4, " in made
    )
    assert "LoRA adapter (4,884,480 of 139,400,000 parameters trained)" in made
    columns = [len(re.findall(r"(?<!\\)\|", r)) for r in rows if r.startswith("| `")]
    assert set(columns) == {9}, "each row has the header's columns"


def test_what_a_dataset_s_licence_is(tmp_path: Path) -> None:
    datasets = {"Intel/orca_dpo_pairs": "x" * 64, "data-in/mine.jsonl": "y" * 64}
    made = render_card(card(tmp_path, datasets=datasets))
    assert "| `data-in/mine.jsonl` | `sha256 yyyyyyyyyyyyyyyyyyyy` | unknown |" in made
    assert re.search(r"\| `Intel/orca_dpo_pairs` \| `sha256 x+` \| Apache-2.0 \|", made)


EVIL = "x|y`<script>alert(1)</script>\n# [t](javascript:1) *b* _i_ \\ ```"


def test_text_of_others_stays_text(tmp_path: Path) -> None:
    """Names of files, splits and checks, as a dataset or recipe may bring them."""
    report = source(EVIL, "x" * 64)
    report["train"] |= {"split": EVIL, "dropped": {EVIL: 1}}
    datasets = {EVIL: "x" * 64, "other": "y" * 64}
    found = results(report, source("other", "y" * 64))
    made = render_card(card(tmp_path, datasets=datasets, results=found, verdict={**VERDICT, "reasons": [EVIL]}))
    head(made)
    outside = re.sub(r"(?ms)^(`{3,})yaml$.*?^\1$", "", made)  # a block shows all as it is
    assert outside != made
    for line in outside.splitlines():
        plain = re.sub(r"`[^`]*`", "", re.sub(r"\\[\\`*_\[\]|~$]", "", line))
        assert "<script" not in plain and "[t]" not in plain, line
    assert not [line for line in outside.splitlines() if line.startswith("# ") and line != "# demo"]
    rows = [line for line in outside.splitlines() if line.startswith("| `x")]
    assert {len(re.findall(r"(?<!\\)\|", r)) for r in rows} == {9}


def test_no_folder_and_no_address_of_this_machine(tmp_path: Path) -> None:
    keys = {"model_name_or_path": "/home/me/models/sft", "chat_template": "{{ x }}", "output_dir": "/home/me/p/data/x"}
    keys |= {"validation": {"decontaminate": ["/home/me/secret/eval.jsonl"]}, "tracking": {"tags": {"who": "me@host"}}}
    datasets = {"/home/me/data/pairs.jsonl": "x" * 64, "~/other.jsonl": "y" * 64}
    model = StartingModel(
        "/home/me/models/sft", "/home/me/models/sft", None, "d", "t", "/home/me/models/sft", weights="w"
    )
    made = render_card(card(tmp_path, keys=keys, datasets=datasets, model=model))
    assert "/home" not in made and "me@host" not in made and "~/" not in made
    assert "base_model" not in head(made)
    assert made.count("…/pairs.jsonl") == 4  # twice in the table, in the mixture, in the recipe
    assert "…/sft" in made and "…/eval.jsonl" in made


def test_the_same_run_the_same_card(tmp_path: Path) -> None:
    assert render_card(card(tmp_path)) == render_card(card(tmp_path))


def test_orpo(tmp_path: Path) -> None:
    made = render_card(card(tmp_path, keys={"method": "orpo", "max_length": 512}))
    assert head(made)["tags"][0] == "orpo"
    assert "with ORPO ([arXiv:2403.07691]" in made and "| ORPO |" in made


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a_b*c", r"a\_b\*c"), ("<b>&", "&lt;b&gt;&amp;"), ("a\n# b", "a # b"), ("[x](y)", r"\[x\](y)"), (3, "3")],
)
def test_markdown(text: Any, shown: str) -> None:
    assert markdown(text) == shown
    assert markdown(markdown(text)) == shown, "once is enough"


def test_code_and_blocks() -> None:
    assert code("a|b`c\nd") == "`a\\|b'c d`"
    assert block("x\n", "yaml") == "```yaml\nx\n```"
    assert block("a ```` b") == "`````\na ```` b\n`````"


def test_without_folders() -> None:
    assert without_folders({"a": ["/x/y", "x/y", 3, None], "b": ("~/z",)}) == {
        "a": ["…/y", "x/y", 3, None],
        "b": ["…/z"],
    }
