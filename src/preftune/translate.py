"""From the keys of older versions to those of today. Every step changes the flat mapping in place and tells of each
key what it became; what cannot be translated is told as a problem, and the next key is looked at.
"""

from typing import Any

from preftune.errors import UserError
from preftune.old_keys import ALIASES, NO_EFFECT, REFUSED, RENAMED, Change, Problem, is_off


class _Translation:
    def __init__(self, flat: dict[str, Any], where: str) -> None:
        self.flat, self.where = flat, where
        self.changes: list[Change] = []
        self.problems: list[Problem] = []

    def wrong(self, key: str, message: str, advice: str) -> None:
        self.problems.append((key, UserError(message, f"{self.where}: {key}", advice)))

    def rename(self, old: str, new: str) -> None:
        """`old` becomes `new`, unless `new` says something else already."""
        value = self.flat.pop(old)
        if old in ALIASES and value is None:  # not set: the other name decides
            self.changes.append(Change(old, "no effect"))
        elif new in self.flat and self.flat[new] != value:
            self.wrong(old, f"{old!r} and {new!r} are two names of one key", f"keep {new}")
        else:
            self.flat[new] = value
            notice = "" if old in ALIASES else f"{old} is called {new} now"
            self.changes.append(Change(old, "renamed", new, notice))


def translate(flat: dict[str, Any], where: str) -> tuple[list[Change], list[Problem]]:
    """Renames, removes or refuses keys of older versions, in place.

    Args:
        flat: The recipe's keys; only those of today remain.
        where: File, for messages.

    Returns:
        What became of each key that did not stay as it was, and what is wrong.
    """
    t = _Translation(flat, where)
    for old, new in {**RENAMED, **ALIASES}.items():
        if old in flat:
            t.rename(old, new)
    for step in (_dtype, _attention, _warmup, _optimizer, _losses, _mixer):
        step(t)
    for key in [k for k in flat if k in NO_EFFECT]:
        off = is_off(flat.pop(key))
        t.changes.append(Change(key, "no effect", "", "" if off else f"{key} has no effect: {NO_EFFECT[key]}"))
    for key in sorted(set(flat) & set(REFUSED)):
        value = flat.pop(key)
        if is_off(value) or (key == "local_rank" and value == -1):
            t.changes.append(Change(key, "no effect"))
        else:
            t.problems.append(
                (key, UserError(f"{key} is not taken from a recipe: {REFUSED[key]}", where, f"remove {key}"))
            )
    return t.changes, t.problems


def _dtype(t: _Translation) -> None:
    """transformers 4 loaded `torch_dtype: null` as float32, 5 loads `dtype: null` as the weights are stored."""
    if "torch_dtype" not in t.flat:
        return
    if t.flat["torch_dtype"] is None and t.flat.get("dtype") is None:
        t.flat.pop("torch_dtype")
        t.flat["dtype"] = "float32"
        notice = "torch_dtype: null is dtype: float32 now (null has come to mean: as the weights are stored)"
        t.changes.append(Change("torch_dtype", "renamed", "dtype: float32", notice))
        return
    t.rename("torch_dtype", "dtype")


def _attention(t: _Translation) -> None:
    if "use_flash_attention_2" not in t.flat:
        return
    if not t.flat["use_flash_attention_2"]:
        t.flat.pop("use_flash_attention_2")
        t.changes.append(Change("use_flash_attention_2", "no effect"))
        return
    t.flat["use_flash_attention_2"] = "flash_attention_2"
    t.rename("use_flash_attention_2", "attn_implementation")


def _warmup(t: _Translation) -> None:
    """transformers 5 has one key: a float below 1 is a share of the steps. Before, a number of steps won."""
    if "warmup_ratio" not in t.flat:
        return
    ratio, steps = t.flat["warmup_ratio"], t.flat.get("warmup_steps")
    if isinstance(steps, int | float) and steps > 0:
        t.flat.pop("warmup_ratio")
        notice = "" if not ratio else "warmup_ratio has no effect: warmup_steps is given, and wins"
        t.changes.append(Change("warmup_ratio", "no effect", "", notice))
    elif isinstance(ratio, int | float) and not isinstance(ratio, bool) and not 0 <= ratio < 1:
        t.flat.pop("warmup_ratio")
        t.wrong("warmup_ratio", f"{ratio!r} is no share of the steps: it must be at least 0 and below 1", "say 0.1")
    elif ratio is None:
        t.flat.pop("warmup_ratio")
        t.changes.append(Change("warmup_ratio", "no effect"))
    else:
        if t.flat.pop("warmup_steps", None) is not None:
            t.changes.append(Change("warmup_steps", "no effect", "", ""))
        t.rename("warmup_ratio", "warmup_steps")


def _optimizer(t: _Translation) -> None:
    if "adafactor" not in t.flat:
        return
    if not t.flat["adafactor"]:
        t.flat.pop("adafactor")
        t.changes.append(Change("adafactor", "no effect"))
        return
    t.flat["adafactor"] = "adafactor"
    t.rename("adafactor", "optim")


def _losses(t: _Translation) -> None:
    """Old names of losses, and RPO: the negative log-likelihood of the chosen answer, weighted, on top of DPO's."""
    named = t.flat.get("loss_type")
    losses = named if isinstance(named, list) else [named]
    if "kto_pair" in losses:
        t.flat.pop("loss_type")
        advice = "bco_pair and apo_zero are the closest: they weigh chosen and rejected each for itself, too"
        t.wrong("loss_type", "the loss kto_pair is no longer in TRL", advice)
    elif "aot_pair" in losses:
        t.flat["loss_type"] = ["aot_unpaired" if x == "aot_pair" else x for x in losses]
        notice = "the loss aot_pair is called aot_unpaired now"
        t.changes.append(Change("loss_type", "changed", "aot_unpaired", notice))
    if "rpo_alpha" not in t.flat:
        return
    alpha = t.flat.pop("rpo_alpha")
    if alpha is None:
        t.changes.append(Change("rpo_alpha", "no effect"))
    elif "loss_weights" in t.flat or isinstance(named, list):
        t.wrong("rpo_alpha", "rpo_alpha is a loss in the list now", "add sft to loss_type and its weight")
    else:
        t.flat["loss_type"] = [named or "sigmoid", "sft"]
        t.flat["loss_weights"] = [1.0, alpha]
        became = f"loss_type: [{named or 'sigmoid'}, sft], loss_weights: [1.0, {alpha}]"
        t.changes.append(Change("rpo_alpha", "moved", became, f"rpo_alpha is now {became}"))


def _mixer(t: _Translation) -> None:
    """`dataset_mixer` and `dataset_splits` of the handbook → `dataset_mixture`."""
    mixer, splits = t.flat.pop("dataset_mixer", None), t.flat.pop("dataset_splits", None)
    if mixer is None:
        if splits is not None:
            t.wrong("dataset_splits", "it belongs to dataset_mixer, which is not here", "remove it")
        return
    if not isinstance(mixer, dict) or not mixer:
        t.wrong("dataset_mixer", "dataset_mixer must map dataset ids to weights", "see docs/recipes.md")
        return
    if "dataset_mixture" in t.flat:
        t.wrong("dataset_mixer", "dataset_mixer and dataset_mixture both name data", "keep dataset_mixture")
        return
    names = [splits] if isinstance(splits, str) else splits or ["train"]
    if not isinstance(names, list) or not all(isinstance(s, str) for s in names):
        t.wrong("dataset_splits", "dataset_splits must be a list of names", "see docs/recipes.md")
        return
    train = [s for s in names if "train" in s] or names[:1]
    test = [s for s in names if "test" in s]
    t.flat["dataset_mixture"] = {
        "datasets": [
            {"id": d, "split": s, "weight": w, "test_split": test[0] if test else None}
            for d, w in mixer.items()
            for s in train
        ]
    }
    called = "dataset_mixer is" if splits is None else "dataset_mixer and dataset_splits are"
    place = "dataset_mixture.datasets"
    t.changes.append(Change("dataset_mixer", "moved", place, f"{called} called dataset_mixture now"))
    if splits is not None:
        t.changes.append(Change("dataset_splits", "moved", f"{place}: split, test_split"))
