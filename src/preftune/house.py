"""What preftune sets where a recipe is silent, and the few values of a recipe that it changes, with the reason."""

from pathlib import Path
from typing import Any

from preftune.accelerate_configs import device
from preftune.old_keys import Change, Kind
from preftune.packages import installed
from preftune.schema import EMBEDDED_MODEL

# What preftune sets where a recipe is silent, and why TRL's default would not do.
HOUSE_TRAINING: dict[str, Any] = {
    "seed": 42,
    "logging_nan_inf_filter": False,  # TRL's default hides a NaN loss from the logs
    "save_total_limit": 2,  # rotation runs before on_save: with 1 a torn checkpoint would be the only one
    "report_to": ["none"],
}


def fill_in(values: dict[str, Any], method: str, output_dir: Any) -> list[Change]:
    """Fills in what preftune sets where the recipe is silent, and changes what would not do; in place.

    Args:
        values: TRL's keys, each checked.
        method: `dpo` or `orpo`.
        output_dir: As in the recipe: the hub repository is named after it where none is named.

    Returns:
        What was changed.
    """
    changes: list[Change] = []

    def tell(key: str, kind: Kind, became: str, notice: str) -> None:
        changes.append(Change(key, kind, became, notice))

    if not values.get("model_name_or_path"):
        values["model_name_or_path"] = EMBEDDED_MODEL
        notice = f"no model_name_or_path: starting from the embedded model ({EMBEDDED_MODEL})"
        tell("model_name_or_path", "changed", EMBEDDED_MODEL, notice)
    if not values.get("use_peft") and (unused := [k for k in values if k.startswith("lora_")]):
        for i, key in enumerate(unused):
            notice = "" if i else "lora_* keys have no effect without use_peft: true (all weights are trained)"
            tell(key, "no effect", "", notice)
    if values.get("save_total_limit") == 1:
        values["save_total_limit"] = 2
        notice = "save_total_limit is 2: with one checkpoint a torn one would be the only one"
        tell("save_total_limit", "changed", "2", notice)
    if values.get("push_to_hub") and not values.get("hub_model_id") and isinstance(output_dir, str):
        values["hub_model_id"] = Path(output_dir).name
        notice = f"hub_model_id is {values['hub_model_id']}, the output folder's name: push_to_hub names no other"
        tell("push_to_hub", "changed", f"hub_model_id: {values['hub_model_id']}", notice)
    changes += _trackers(values)
    changes += _packages(values)
    for key, value in HOUSE_TRAINING.items():
        if values.get(key) is None:
            values[key] = value
    if method == "dpo":
        values.setdefault("precompute_ref_log_probs", not values.get("sync_ref_model", False))
    return changes


def _trackers(values: dict[str, Any]) -> list[Change]:
    if (named := values.get("report_to")) is None:
        return []
    names = named if isinstance(named, list) else [named]
    values["report_to"] = [n for n in names if n != "mlflow"] or ["none"]
    if "mlflow" not in names:
        return []
    notice = "report_to: mlflow is left out: preftune always records in MLflow itself"
    return [Change("report_to", "changed", "without mlflow", notice)]


def _packages(values: dict[str, Any]) -> list[Change]:
    """Leaves out what only makes a training faster, where the package for it is missing."""
    changes = []
    flash = installed("flash_attn") and device() == "cuda"
    if values.get("attn_implementation") == "flash_attention_2" and not flash:
        values.pop("attn_implementation")
        notice = (
            "attn_implementation: flash_attention_2 is left out: no GPU here, or no package flash-attn "
            "(transformers' own attention computes the same, slower)"
        )
        changes.append(Change("attn_implementation", "changed", "transformers' choice", notice))
    if values.get("use_liger_kernel") and not installed("liger_kernel"):
        values.pop("use_liger_kernel")
        notice = "use_liger_kernel is left out: the package liger-kernel is not installed here (same result, slower)"
        changes.append(Change("use_liger_kernel", "changed", "false", notice))
    return changes
