"""The recipe's flat keys: the snapshot is TRL's own, types and bounds are checked."""

import importlib.util
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune import known_keys
from preftune.errors import UserError
from preftune.known_keys import BOUNDS, check_value, known, snapshot, specs, unknown_key
from preftune.old_keys import ALIASES, NO_EFFECT, REFUSED, RENAMED

SCRIPT = Path(__file__).parents[1] / "scripts" / "snapshot_keys.py"


def test_snapshot_is_the_installed_trl() -> None:
    """known_keys.json is what the script writes today; run it after an upgrade."""
    spec = importlib.util.spec_from_file_location("snapshot_keys", SCRIPT)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever the import of trl has to say
        now = script.snapshot()
    assert json.loads(json.dumps(now)) == snapshot()


def test_every_bounded_key_is_trl_s() -> None:
    """A bound on a key that TRL renamed would check nothing."""
    assert set(BOUNDS) <= set(specs())


def test_translations_lead_to_known_keys() -> None:
    assert {*RENAMED.values(), *ALIASES.values()} <= set(known())
    assert not {*RENAMED, *ALIASES, *NO_EFFECT, *REFUSED} & set(known())


def test_command_line_words_are_no_keys() -> None:
    """`--json`, `--keys`, `--fail-on-reject` and `--help` can never mean a recipe key."""
    assert not {"json", "fail-on-reject", "fail_on_reject", "help", "keys", "workers"} & set(known())


def outside(key: str) -> list[float]:
    """Values just outside a key's bounds, of the type that the key wants."""
    low, inclusive, high = BOUNDS[key]
    spec = specs()[key]
    step = 1 if "int" in spec["types"] else 1e-9
    below = low - step if inclusive else low
    above = [high + max(step, abs(high) * 1e-9)] if math.isfinite(high) else []
    return [x if "float" in spec["types"] else int(x) for x in (below, *above)]


@pytest.mark.parametrize("key", sorted(BOUNDS))
def test_bounds(key: str) -> None:
    """Just outside is refused, the bound itself is taken where it is inclusive."""
    for value in outside(key):
        with pytest.raises(UserError, match="out of range") as e:
            check_value(key, value, "x.yaml")
        assert e.value.where == f"x.yaml: {key}"
    low, inclusive, high = BOUNDS[key]
    spec = specs()[key]
    kind = float if "float" in spec["types"] else int
    assert check_value(key, kind(low) if inclusive else kind(1), "x.yaml") == (low if inclusive else 1)
    if math.isfinite(high):
        assert check_value(key, kind(high), "x.yaml") == high


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("beta", -1),
        ("beta", 0),
        ("beta", 0.0),
        ("learning_rate", 0),
        ("learning_rate", 1e6),
        ("learning_rate", -5e-7),
        ("gradient_accumulation_steps", 0),
        ("per_device_train_batch_size", 0),
        ("num_train_epochs", 0),
        ("max_length", 7),
        ("lora_r", 0),
        ("lora_dropout", 1.5),
        ("max_steps", -2),
        ("seed", -1),
    ],
)
def test_values_that_train_wrongly(key: str, value: float) -> None:
    """What TRL takes in silence."""
    with pytest.raises(UserError, match="out of range"):
        check_value(key, value, "x.yaml")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("beta", 1, 1.0),
        ("num_train_epochs", 2, 2.0),
        ("logging_steps", 1, 1.0),
        ("warmup_steps", 0.1, 0.1),
        ("loss_type", "sigmoid", ["sigmoid"]),
        ("loss_type", ["sigmoid", "ipo"], ["sigmoid", "ipo"]),
        ("max_length", None, None),
        ("use_peft", True, True),
        ("lora_r", 8, 8),
        ("report_to", "tensorboard", "tensorboard"),
        # a bare `no` in YAML is false
        ("save_strategy", False, "no"),
        ("eval_strategy", False, "no"),
        ("eval_strategy", "no", "no"),
    ],
)
def test_values_that_fit(key: str, value: Any, expected: Any) -> None:
    """An integer becomes a float where TRL wants one, one loss becomes a list of one."""
    found = check_value(key, value, "x.yaml")
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("beta", "0.1", "'0.1' is str, float is needed"),
        ("beta", True, "True is bool, float is needed"),
        ("beta", None, "None is NoneType, float is needed"),
        ("beta", [0.1], "is list, float is needed"),
        ("lora_r", 8.5, "8.5 is float, int is needed"),
        ("lora_r", True, "True is bool, int is needed"),
        ("use_peft", 1, "1 is int, bool is needed"),
        ("use_peft", "yes", "'yes' is str, bool is needed"),
        ("lr_scheduler_type", 3, "3 is int, str is needed"),
    ],
)
def test_wrong_types(key: str, value: Any, told: str) -> None:
    with pytest.raises(UserError) as e:
        check_value(key, value, "x.yaml")
    assert told in e.value.error and key in e.value.where


def test_a_number_in_quotes() -> None:
    with pytest.raises(UserError, match="'5e-7' is str, float is needed") as e:
        check_value("learning_rate", "5e-7", "x.yaml")
    assert e.value.advice == "take the quotes off: learning_rate: 5e-7"


@pytest.mark.parametrize(
    ("key", "value", "advice"),
    [
        ("loss_type", "sigmoyd", "did you mean sigmoid?"),
        ("loss_type", ["sigmoid", "hing"], "did you mean hinge?"),
        ("lr_scheduler_type", "cosin", "did you mean cosine?"),
        ("eval_strategy", "step", "did you mean steps?"),
        ("save_strategy", "qqq", "one of: "),
        ("optim", "adamw_torc", "did you mean adamw_torch?"),
    ],
)
def test_names_that_trl_does_not_know(key: str, value: Any, advice: str) -> None:
    """Told before the baseline is evaluated, not when the training starts."""
    with pytest.raises(UserError, match="is not known") as e:
        check_value(key, value, "x.yaml")
    assert e.value.advice.startswith(advice) and e.value.where == f"x.yaml: {key}"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(value: float) -> None:
    with pytest.raises(UserError, match="not a finite number"):
        check_value("beta", value, "x.yaml")


def test_a_number_too_large_for_a_float() -> None:
    """400 digits pass the YAML reader; they are an error like any other."""
    with pytest.raises(UserError):
        check_value("learning_rate", 10**400, "x.yaml")
    with pytest.raises(UserError):
        check_value("seed", 10**400, "x.yaml")


@given(
    st.sampled_from(sorted(specs())),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**6), 10**6),
        st.floats(),
        st.text(max_size=3),
        st.just([]),
        st.just({}),
    ),
)
def test_a_value_fits_or_is_a_user_error(key: str, value: Any) -> None:
    """Whatever comes back is one of the key's types and finite."""
    types = specs()[key]["types"]
    try:
        found = check_value(key, value, "x.yaml")
    except UserError as e:
        assert key in e.where
        return
    assert ("null" if found is None else type(found).__name__) in types
    assert not isinstance(found, float) or math.isfinite(found)


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("bta", "did you mean beta?"),
        ("learning-rate", "did you mean learning_rate?"),
        ("lora_rank", "did you mean lora_r?"),
        ("dataset_mixtures", "did you mean dataset_mixture?"),
        ("zzzzzz", "docs/recipes.md lists the keys"),
    ],
)
def test_unknown_key(key: str, advice: str) -> None:
    error = unknown_key(key, known(), "x.yaml")
    assert error.advice == advice and repr(key) in error.error and error.where == "x.yaml"


def test_known_is_sorted_and_complete() -> None:
    keys = known()
    assert keys == sorted(set(keys))
    assert {"beta", "learning_rate", "model_name_or_path", "dataset_mixture", "gate", "method"} <= set(keys)
    assert set(known_keys.DATASET_SHORTCUT) <= set(keys)
