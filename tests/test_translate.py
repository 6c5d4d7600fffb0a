"""Keys of older versions: each keeps its meaning, is translated, or is told of."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.errors import UserError
from preftune.known_keys import known
from preftune.old_keys import ALIASES, NO_EFFECT, REFUSED, RENAMED
from preftune.recipe import load_recipe, resolve
from preftune.schema import Recipe
from preftune.translate import translate

PATH = Path("recipes/demo/config.yaml")


def made(**keys: Any) -> Recipe:
    return resolve({"dataset_name": "x", **keys}, PATH)


def test_the_tables_do_not_overlap() -> None:
    tables = [set(RENAMED), set(ALIASES), set(NO_EFFECT), set(REFUSED)]
    assert len(set().union(*tables)) == sum(map(len, tables))
    assert all(reason and not reason.endswith(".") for reason in {**NO_EFFECT, **REFUSED}.values())


@pytest.mark.parametrize(
    ("old", "model"),
    [
        ({"torch_dtype": None}, {"dtype": "float32"}),
        ({"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "auto"}, {"dtype": "auto"}),
        ({"torch_dtype": None, "dtype": "bfloat16"}, {"dtype": "bfloat16"}),
    ],
)
def test_dtype(old: dict[str, Any], model: dict[str, Any]) -> None:
    try:
        recipe = made(**old)
    except UserError as e:
        assert len(old) == 2 and "two names" in e.error  # null and a name say two things
        return
    assert {"dtype": recipe.model["dtype"]} == model
    assert any("torch_dtype" in n for n in recipe.notices)


@pytest.mark.parametrize(
    ("old", "steps", "told"),
    [
        ({"warmup_ratio": 0.1}, 0.1, True),
        ({"warmup_ratio": 0.1, "warmup_steps": 0}, 0.1, True),
        ({"warmup_ratio": 0.1, "warmup_steps": 100}, 100.0, True),
        ({"warmup_ratio": 0, "warmup_steps": 100}, 100.0, False),
        ({"warmup_ratio": 0.0}, 0.0, True),
        ({"warmup_ratio": None, "warmup_steps": 5}, 5.0, False),
    ],
)
def test_warmup(old: dict[str, Any], steps: float, told: bool) -> None:
    """A number of steps won over a share, and still does."""
    recipe = made(**old)
    assert recipe.training["warmup_steps"] == steps
    assert any("warmup_ratio" in n for n in recipe.notices) == told


@pytest.mark.parametrize("ratio", [1, 1.0, 2, -0.1])
def test_a_share_of_all_steps_or_more(ratio: float) -> None:
    """1.0 would become one single step."""
    with pytest.raises(UserError, match="no share of the steps"):
        made(warmup_ratio=ratio)


@pytest.mark.parametrize(
    ("old", "value"),
    [
        ({"use_flash_attention_2": True}, "flash_attention_2"),
        ({"use_flash_attention_2": True, "attn_implementation": "flash_attention_2"}, "flash_attention_2"),
        ({"use_flash_attention_2": False}, None),
    ],
)
def test_flash_attention(old: dict[str, Any], value: str | None) -> None:
    flat = dict(old)
    changes, problems = translate(flat, "x.yaml")
    assert flat.get("attn_implementation") == value and not problems
    assert [c.kind for c in changes] == ["renamed" if value else "no effect"]


def test_flash_attention_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out with a notice; kept where the package is there."""
    monkeypatch.setattr("preftune.house.installed", lambda module: False)
    recipe = made(attn_implementation="flash_attention_2", use_liger_kernel=True)
    assert "attn_implementation" not in recipe.model and "use_liger_kernel" not in recipe.training
    assert sum("is left out" in n for n in recipe.notices) == 2
    monkeypatch.setattr("preftune.house.device", lambda: "cuda")
    monkeypatch.setattr("preftune.house.installed", lambda module: True)
    recipe = made(attn_implementation="flash_attention_2", use_liger_kernel=True)
    assert recipe.model["attn_implementation"] == "flash_attention_2" and recipe.training["use_liger_kernel"]
    assert not any("left out" in n for n in recipe.notices)


@pytest.mark.parametrize(
    ("old", "losses", "weights"),
    [
        ({"loss_type": "aot_pair"}, ["aot_unpaired"], None),
        ({"loss_type": ["sigmoid", "aot_pair"]}, ["sigmoid", "aot_unpaired"], None),
        ({"rpo_alpha": 0.5}, ["sigmoid", "sft"], [1.0, 0.5]),
        ({"rpo_alpha": 1, "loss_type": "ipo"}, ["ipo", "sft"], [1.0, 1]),
        ({"rpo_alpha": None, "loss_type": "ipo"}, ["ipo"], None),
    ],
)
def test_losses(old: dict[str, Any], losses: list[str], weights: list[float] | None) -> None:
    training = made(**old).training
    assert (training["loss_type"], training.get("loss_weights")) == (losses, weights)


def test_losses_that_are_gone() -> None:
    with pytest.raises(UserError, match="kto_pair is no longer in TRL") as e:
        made(loss_type="kto_pair")
    assert "bco_pair" in e.value.advice
    with pytest.raises(UserError, match="not taken from a recipe"):
        made(reference_free=True)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"activation_checkpointing": False}, False),
        ({"activation_checkpointing": None, "gradient_checkpointing": False}, False),
        ({"activation_checkpointing": True, "gradient_checkpointing": True}, True),
    ],
)
def test_one_name_for_checkpointing(keys: dict[str, Any], expected: bool) -> None:
    """transformers has two names; nothing to tell, and one place to look it up."""
    recipe = made(**keys)
    assert recipe.training["gradient_checkpointing"] is expected
    assert "activation_checkpointing" not in recipe.training
    assert not any("checkpointing" in n for n in recipe.notices)


def test_two_names_that_differ() -> None:
    with pytest.raises(UserError, match="two names of one key"):
        made(activation_checkpointing=True, gradient_checkpointing=False)


def test_adafactor() -> None:
    assert made(adafactor=True).training["optim"] == "adafactor"
    assert "optim" not in made(adafactor=False).training


def test_trust_remote_code_is_off_whatever_a_recipe_says() -> None:
    recipe = made(trust_remote_code=True)
    assert "trust_remote_code" not in recipe.training
    assert any("code from a model's repository is not run" in n for n in recipe.notices)


@pytest.mark.parametrize(
    ("file", "overrides", "place", "expected"),
    [
        ("evaluation_strategy: steps", {"eval_strategy": "no"}, ("training", "eval_strategy"), "no"),
        ("eval_strategy: steps", {"evaluation_strategy": "no"}, ("training", "eval_strategy"), "no"),
        ("torch_dtype: bfloat16", {"dtype": "float16"}, ("model", "dtype"), "float16"),
        ("dtype: bfloat16", {"torch_dtype": None}, ("model", "dtype"), "float32"),
        ("warmup_ratio: 0.1", {"warmup_steps": 20}, ("training", "warmup_steps"), 20.0),
        ("warmup_steps: 20", {"warmup_ratio": 0.1}, ("training", "warmup_steps"), 0.1),
        (
            "gradient_checkpointing: true",
            {"activation_checkpointing": False},
            ("training", "gradient_checkpointing"),
            0,
        ),
    ],
)
def test_overrides_win_by_any_name(
    tmp_path: Path, file: str, overrides: dict[str, Any], place: tuple[str, str], expected: Any
) -> None:
    path = tmp_path / "demo" / "config.yaml"
    path.parent.mkdir()
    path.write_text(f"dataset_name: x\n{file}\n")
    assert getattr(load_recipe(path, overrides), place[0])[place[1]] == expected


def test_overrides_reach_into_a_handbook_mixer(tmp_path: Path) -> None:
    path = tmp_path / "demo" / "config.yaml"
    path.parent.mkdir()
    path.write_text("dataset_mixer: {a/a: 0.5, b/b: 1.0}\ndataset_splits: [train_prefs, test_prefs]\n")
    recipe = load_recipe(path, {"dataset_mixture.datasets.1.max_rows": 7})
    assert [(e.id, e.max_rows, e.weight) for e in recipe.mixture.datasets] == [("a/a", None, 0.5), ("b/b", 7, 1.0)]


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 200), st.floats(), st.text(max_size=4), st.just([]), st.just(["x"])
)
_OLD = sorted({*RENAMED, *ALIASES, *NO_EFFECT, *REFUSED, "torch_dtype", "warmup_ratio", "adafactor", "rpo_alpha"})


@given(st.dictionaries(st.sampled_from([*_OLD, "loss_type", "warmup_steps", "dtype", "optim"]), _VALUES, max_size=5))
def test_only_keys_of_today_remain(flat: dict[str, Any]) -> None:
    """Whatever the values are: every old key is gone and has a change or a problem of its own."""
    before = dict(flat)
    changes, problems = translate(flat, "x.yaml")
    assert set(flat) <= set(known())
    accounted = {c.key for c in changes} | {key for key, _ in problems}
    assert set(before) - set(flat) <= accounted
    assert all(e.error and e.where and e.advice for _, e in problems)
