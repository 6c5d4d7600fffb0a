"""The space of a sweep: what a trial is called, and whether every value that it may try is one that a recipe takes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preftune.errors import UserError
from preftune.recipe import load_recipe
from preftune.schema import Recipe
from preftune.sweep_schema import Range, Sweep

# What the held-out loss's scale depends on. Between trials that differ in one of them the reward accuracy is compared.
_LOSS_SCALE = {"beta", "loss_type", "loss_weights", "method", "label_smoothing", "ld_alpha", "use_weighting"}
_LOSS_SCALE |= {"discopop_tau", "f_divergence_type", "f_alpha_divergence_coef", "max_length"}


def required_sweep(recipe: Recipe) -> Sweep:
    """The recipe's section.

    Raises:
        UserError: If it has none.
    """
    if recipe.sweep is None:
        raise UserError(
            "the recipe has no section sweep",
            str(recipe.path),
            "write one (docs/sweeps.md), or name values: --sweep.parameters.beta='[0.05, 0.1, 0.2]'",
        )
    return recipe.sweep


def ranked_by(recipe: Recipe, sweep: Sweep) -> str:
    """The measure: the sweep's own, else what the verdict decides by."""
    return sweep.measure or ("reward_accuracy" if recipe.evaluation.judge is None else "lc_win_rate")


def watched(sweep: Sweep) -> tuple[str, int]:
    """What tells a hopeless training while it runs: (name in metrics.jsonl, 1 if higher is better, else -1)."""
    if {name.split(".")[0] for name in sweep.parameters} & _LOSS_SCALE:
        return "eval/rewards/accuracies", 1
    return "eval/loss", -1


def as_choice(value: Any) -> Any:
    """A value as Optuna keeps it among choices: plain ones as they are, lists and mappings as JSON text."""
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)


def from_choices(sweep: Sweep, found: Mapping[str, Any]) -> dict[str, Any]:
    """Optuna's parameters as recipe keys with their values, in the recipe's order."""
    values = {}
    for name, wanted in sweep.parameters.items():
        value = found[name]
        if not isinstance(wanted, Range):
            value = next(v for v in wanted if as_choice(v) == value and isinstance(as_choice(v), type(value)))
        values[name] = value
    return values


def shown(value: Any) -> str:
    """A value as people read it: `3.2e-06`, `sigmoid`."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def label(values: Mapping[str, Any]) -> str:
    """`beta=0.1 learning_rate=3.2e-06`."""
    return " ".join(f"{name}={shown(value)}" for name, value in values.items())


def check_space(path: Path, overrides: Mapping[str, Any], sweep: Sweep) -> None:
    """Reads the recipe with each value (of a range: with both ends), the other keys at their first one.

    Raises:
        UserError: For the first value that no recipe takes; before anything is trained.
    """
    ends = {n: (v.low, v.high) if isinstance(v, Range) else v for n, v in sweep.parameters.items()}
    first = {name: values[0] for name, values in ends.items()}
    for name, values in ends.items():
        for value in values:
            try:
                load_recipe(path, {**overrides, **first, name: value})
            except UserError as e:
                raise UserError(
                    e.error, f"sweep.parameters.{name} ({shown(value)})", e.advice or "correct this value"
                ) from None
