"""`preftune check --keys`: what each key of a recipe became, all that is wrong with it, and which defaults are others
than those it was written for. Loads neither model nor data.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from preftune.known_keys import specs
from preftune.old_keys import Change
from preftune.packages import missing_packages
from preftune.reading import Reading, holds_secret, read
from preftune.schema import Recipe


class KeyRow(NamedTuple):
    """One key: as it is written, what it became, and what that changes.

    Args:
        key: The name in the file; a section's with dots.
        value: As in the file or on the command line; None where it stands in neither.
        kind: kept, renamed, moved, changed, no effect or refused.
        became: Today's key or value; empty if it is gone.
        effect: In words; empty if nothing changes.
    """

    key: str
    value: Any
    kind: str
    became: str
    effect: str


class DefaultRow(NamedTuple):
    """What the recipe leaves to a default that was another one when it was written."""

    key: str
    was: str
    now: str
    effect: str


class KeyReport(NamedTuple):
    """All that can be told of a recipe's keys.

    Args:
        keys: A row for each key.
        defaults: What is left to a default that has changed.
        errors: Each as `--json` prints it, and the key.
        warnings: The notices of a run.
        missing: Packages that this machine lacks: the recipe is right, and would stop here.
        recipe: None if there are errors.
    """

    keys: list[KeyRow]
    defaults: list[DefaultRow]
    errors: list[dict[str, str]]
    warnings: list[str]
    missing: list[str]
    recipe: Recipe | None

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints; docs/json.md describes it."""
        return {
            "errors": self.errors,
            "warnings": [*self.warnings, *self.missing],
            "keys": [row._asdict() for row in self.keys],
            "defaults": [row._asdict() for row in self.defaults],
            "resolved": self.recipe.resolved() if self.recipe else None,
        }


# A recipe that holds one of these was written for alignment-handbook or an older TRL.
_OLD_SIGNS = {"dataset_mixer", "max_prompt_length", "torch_dtype", "evaluation_strategy", "warmup_ratio"}
_OLD_SIGNS |= {"preprocessing_num_workers", "use_flash_attention_2", "hub_model_revision"}

# (key, what it was when left out, what the change does). Read from the handbook's scripts/run_dpo.py, run_orpo.py and
# dpo.py, its src/alignment, TRL 0.7 to 0.19 and transformers 4.
_OLD_DEFAULTS = (
    ("max_length", "512 (until 2024), 1024 (later)", "longer answers stay whole, and need more memory"),
    ("optim", "rmsprop (until 2025), adamw_torch (later)", "another optimizer takes other steps"),
    ("learning_rate", "5e-5", "much smaller steps"),
    ("bf16", "false", "on a GPU in bfloat16, on a CPU in float32"),
    ("gradient_checkpointing", "false", "less memory, about a fifth slower; off on a CPU"),
    ("logging_steps", "500", "a denser log"),
    ("logging_first_step", "true (until 2025)", "the first step is logged with the others"),
)

# What stays as it is, and yet does less or more than its name says.
_EFFECTS = {
    "do_train": "preftune always trains",
    "do_eval": "preftune always evaluates both models; eval_strategy decides about eval/loss while training",
    "do_predict": "preftune always evaluates both models",
}


def key_report(data: dict[str, Any], path: Path, overrides: Mapping[str, Any] | None = None) -> KeyReport:
    """Tells what became of every key.

    Args:
        data: The recipe's mapping, as read from the file.
        path: The file.
        overrides: Dotted keys from the command line.

    Returns:
        A row for each key of file and command line, in their order, then what was added; every error, not only the
        first.
    """
    reading = read(data, path, overrides)
    written = {**_leaves(data), **_leaves(dict(overrides or {}))}
    changes: dict[str, list[Change]] = {}
    for change in reading.changes:
        changes.setdefault(change.key, []).append(change)
    wrong: dict[str, list[str]] = {}
    for key, error in reading.problems:
        wrong.setdefault(key, []).append(error.error)
    rows = [_row(key, value, changes.get(key, []), wrong.get(key, []), reading) for key, value in written.items()]
    for key in [k for k in {**wrong, **changes} if k not in written]:
        row = _row(key, None, changes.get(key, []), wrong.get(key, []), reading)
        rows += [row] if row.effect or row.kind == "renamed" else []
    errors = [{**e.as_json(), "key": key} for key, e in reading.problems]
    warnings = list(dict.fromkeys(c.notice for c in reading.changes if c.notice))
    missing = [e.error for _, e in missing_packages(reading.recipe)] if reading.recipe else []
    return KeyReport(rows, _defaults(data, reading), errors, warnings, missing, reading.recipe)


def _leaves(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Sections and lists of sections with dots; a key of TRL or of the handbook's mixer stays whole."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        if not above and (key in specs() or key in ("dataset_mixer", "dataset_splits")):
            result[name] = value
        elif isinstance(value, dict) and value:
            result |= _leaves(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            result |= _leaves({str(i): entry for i, entry in enumerate(value)}, f"{name}.")
        else:
            result[name] = value
    return result


def _row(key: str, value: Any, changes: list[Change], wrong: list[str], reading: Reading) -> KeyRow:
    if holds_secret(value):
        return KeyRow(key, "(not shown)", "refused", "", "this looks like an access token")
    if wrong:
        return KeyRow(key, value, "refused", "", "; ".join(dict.fromkeys(wrong)))
    if not changes:
        return KeyRow(key, value, "kept", key, _effect(key, value, reading))
    effect = "; ".join(dict.fromkeys(e for c in changes if (e := _in_a_row(c))))
    became = ", ".join(dict.fromkeys(c.became for c in changes if c.became))
    return KeyRow(key, value, changes[-1].kind, became, effect or _effect(key, value, reading))


def _in_a_row(change: Change) -> str:
    """The notice without what the row's other cells say."""
    if change.notice == f"{change.key} is called {change.became} now":
        return ""
    return change.notice.removeprefix(f"{change.key} has no effect: ")


def _effect(key: str, value: Any, reading: Reading) -> str:
    recipe = reading.recipe
    if recipe and key.startswith("hub_") and not recipe.hub.push_to_hub:
        return "only used with push_to_hub: true"
    if recipe and key == "push_to_hub" and value:
        return "the policy is pushed once, after its verdict; no checkpoints before"
    if key == "save_strategy" and value in ("no", False):
        return "no checkpoints: a killed run starts its training again"
    if key.startswith("dataset_mixture.") and key.endswith(".columns") and isinstance(value, list):
        return "prompts and answers are read whatever is listed; a mapping would rename columns"
    if key == "beta" and reading.method == "orpo":
        return "ORPO's λ: the weight of the odds ratio beside the chosen answer's likelihood"
    return _EFFECTS.get(key, "")


def _defaults(data: Mapping[str, Any], reading: Reading) -> list[DefaultRow]:
    """Defaults that a recipe of alignment-handbook or an older TRL meant, and that are others now."""
    if not _OLD_SIGNS & set(data):
        return []
    given = set(data) | {c.became for c in reading.changes}
    rows = []
    for key, was, effect in _OLD_DEFAULTS:
        if key not in given:
            now = "true" if key == "bf16" else str(specs()[key]["default"]).lower()
            rows.append(DefaultRow(key, was, now, effect))
    if data.get("use_peft") and not data.get("lora_target_modules"):
        was = "the family's usual two (q_proj and v_proj)"
        rows.append(DefaultRow("lora_target_modules", was, "all linear layers", "more is trained"))
    if reading.method == "dpo" and "precompute_ref_log_probs" not in data:
        was, now = "a second copy of the model, asked at every step", "computed once and kept"
        rows.append(DefaultRow("precompute_ref_log_probs", was, now, "the same loss, less memory and time"))
    was = str(data.get("max_prompt_length") or "128 (until 2024), 512 (later)")
    effect = "long prompts lost their start; now the answer loses its end, or the pair is left out"
    rows.append(DefaultRow("max_prompt_length", was, "none", effect))
    mixer = data.get("dataset_mixer")
    if isinstance(mixer, dict):
        was = "an empty system message before every prompt, where the chat template knows one"
        effect = "shorter prompts, as in the data"
        rows.append(DefaultRow("auto_insert_empty_system_msg", was, "messages as they are", effect))
        if any(w != 1 for w in mixer.values()):
            rows.append(
                DefaultRow("dataset_mixer", "the first rows of each dataset", "rows drawn by seed", "other rows")
            )
    if "test_split_size" in (data.get("dataset_mixture") or {}):
        effect = "no prompt stands on both sides"
        rows.append(DefaultRow("dataset_mixture.test_split_size", "rows", "whole prompts", effect))
    return rows
