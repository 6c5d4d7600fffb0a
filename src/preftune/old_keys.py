"""What becomes of keys that older versions of TRL, transformers and alignment-handbook had, or that preftune does
not leave to a recipe.

`translate` changes the flat mapping in place and tells of each key what it became: the notices of a run and the
table of `preftune check --keys` both come from there.
"""

from dataclasses import dataclass
from typing import Any, Literal

from preftune.errors import UserError

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "model_max_length": "max_length",
    "preprocessing_num_workers": "dataset_num_proc",
    "hub_model_revision": "hub_revision",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}

# Two names of the same thing in the installed versions: no notice, one place to look it up.
ALIASES = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}

# Gone from the libraries, or without an effect in what preftune does: the reason is told.
NO_EFFECT = {
    "max_prompt_length": "TRL has no separate limit for prompts now; max_length limits prompt and answer together",
    "max_completion_length": "max_length limits prompt and answer together",
    "overwrite_output_dir": "output_dir is replaced as a whole when a run ends",
    "dataset_kwargs": "conversion is preftune's own",
    "padding_free": "TRL 1.16 only warns and pads as always",
    "hub_strategy": "a policy is pushed once, after its verdict",
    "hub_always_push": "a policy is pushed once, after its verdict",
    "generate_during_eval": "preftune itself measures the answers of both models after the training",
    "is_encoder_decoder": "only causal language models are trained",
    "label_pad_token_id": "TRL masks prompts and padding itself now",
    "label_smoothing_factor": "the losses here know label_smoothing only",
    "dataset_configs": "write config for each entry of dataset_mixture",
    "auto_insert_empty_system_msg": "messages are trained on as they are: no empty system message is added",
    "model_code_revision": "code from a model's repository is not run",
    "model_adapter_name": "TRL names adapters itself now",
    "ref_adapter_name": "the reference is the starting model: with LoRA, the same weights without the adapter",
    "force_use_ref_model": "the reference is always the starting model",
    "rpo_alpha": "write loss_type: [sigmoid, sft] with loss_weights: [1.0, ALPHA]",
    "tokenizer_name_or_path": "the tokenizer is the model's own",
    "truncation_side": "an answer is cut at its end (truncation_mode: keep_start)",
}

# Keys that preftune sets itself, or that break one of its promises.
REFUSED = {
    "resume_from_checkpoint": "preftune resumes by itself, from the newest whole checkpoint",
    "auto_find_batch_size": "it shrinks the effective batch in silence; set per_device_train_batch_size",
    "save_only_model": "without the optimizer's state a killed run could not be resumed exactly",
    "trust_remote_code": "code from a model's repository is not run",
    "hub_token": "a recipe is logged and published: put the token into the environment variable HF_TOKEN",
    "local_rank": "the launcher sets it",
    "model_init_kwargs": "TRL ignores it for a model that is loaded already; write dtype, attn_implementation, "
    "model_revision",
    "enable_jit_checkpoint": "a run that was ended by a signal saves and goes on by itself",
    "ignore_data_skip": "a resumed run would see other pairs than one that was never killed",
}

Kind = Literal["kept", "renamed", "moved", "changed", "no effect", "refused"]


@dataclass(frozen=True)
class Change:
    """What became of one key of the file.

    Args:
        key: As written.
        kind: What happened to it.
        became: The key or value it is now; empty if it is gone.
        notice: What that changes, in words; empty if nothing is to be told while a run starts.
    """

    key: str
    kind: Kind
    became: str = ""
    notice: str = ""


Problem = tuple[str, UserError]  # the key in the file, and what is wrong with it


def is_off(value: Any) -> bool:
    """Whether a switch is off or a key left open, so that nothing is lost without it."""
    return value is None or value is False or value in ([], {}, "")


def translate(flat: dict[str, Any], where: str) -> tuple[list[Change], list[Problem]]:
    """Renames, removes or refuses keys of older versions, in place.

    Args:
        flat: The recipe's keys; only those of today remain.
        where: File, for messages.

    Returns:
        What became of each key that did not stay as it was, and what is wrong.
    """
    changes: list[Change] = []
    problems: list[Problem] = []
    for old, new in {**RENAMED, **ALIASES}.items():
        if old in flat:
            _rename(flat, old, new, where, changes, problems)
    for step in (_dtype, _attention, _warmup, _losses, _mixer):
        step(flat, where, changes, problems)
    for old, reason in NO_EFFECT.items():
        if old in flat:
            off = is_off(flat.pop(old))
            changes.append(Change(old, "no effect", "", "" if off else f"{old} has no effect: {reason}"))
    for key in sorted(set(flat) & set(REFUSED)):
        if is_off(flat[key]) or (key == "local_rank" and flat[key] == -1):
            changes.append(Change(key, "no effect", "", ""))
        else:
            reason = f"{key} is not taken from a recipe: {REFUSED[key]}"
            problems.append((key, UserError(reason, where, f"remove {key}")))
        flat.pop(key)
    return changes, problems


def _rename(
    flat: dict[str, Any], old: str, new: str, where: str, changes: list[Change], problems: list[Problem]
) -> None:
    value = flat.pop(old)
    if new in flat and flat[new] != value:
        problems.append((old, UserError(f"{old!r} and {new!r} are two names of one key", where, f"keep {new}")))
        return
    if old in ALIASES and value is None:  # not set: the other name's default
        changes.append(Change(old, "no effect"))
        return
    flat[new] = value
    changes.append(Change(old, "renamed", new, "" if old in ALIASES else f"{old} is called {new} now"))


def _dtype(flat: dict[str, Any], where: str, changes: list[Change], problems: list[Problem]) -> None:
    if "torch_dtype" not in flat:
        return
    if flat["torch_dtype"] is None and "dtype" not in flat:
        flat.pop("torch_dtype")
        flat["dtype"] = "float32"
        notice = "torch_dtype: null is dtype: float32 now (null has come to mean: as the weights are stored)"
        changes.append(Change("torch_dtype", "renamed", "dtype: float32", notice))
        return
    _rename(flat, "torch_dtype", "dtype", where, changes, problems)


def _attention(flat: dict[str, Any], where: str, changes: list[Change], problems: list[Problem]) -> None:
    if "use_flash_attention_2" not in flat:
        return
    if not flat.pop("use_flash_attention_2"):
        changes.append(Change("use_flash_attention_2", "no effect"))
        return
    flat["use_flash_attention_2"] = "flash_attention_2"
    _rename(flat, "use_flash_attention_2", "attn_implementation", where, changes, problems)


def _warmup(flat: dict[str, Any], where: str, changes: list[Change], problems: list[Problem]) -> None:
    """transformers 5 has one key: a float below 1 is a share of the steps. Before, a number of steps won."""
    if "warmup_ratio" not in flat:
        return
    if isinstance(flat.get("warmup_steps"), int | float) and flat["warmup_steps"] > 0:
        flat.pop("warmup_ratio")
        changes.append(
            Change("warmup_ratio", "no effect", "", "warmup_ratio has no effect: warmup_steps is given, and wins")
        )
        return
    ratio = flat["warmup_ratio"]
    if isinstance(ratio, int | float) and not isinstance(ratio, bool) and not 0 <= ratio < 1:
        flat.pop("warmup_ratio")
        message = f"{ratio!r} is no share of the steps: it must be at least 0 and below 1"
        problems.append(("warmup_ratio", UserError(message, f"{where}: warmup_ratio", "for example 0.1")))
        return
    flat.pop("warmup_steps", None)
    _rename(flat, "warmup_ratio", "warmup_steps", where, changes, problems)


def _losses(flat: dict[str, Any], where: str, changes: list[Change], problems: list[Problem]) -> None:
    named = flat.get("loss_type")
    losses = named if isinstance(named, list) else [named]
    if "kto_pair" in losses:
        flat.pop("loss_type")
        message = "the loss kto_pair is no longer in TRL"
        advice = "bco_pair and apo_zero are the closest: both weigh the chosen and the rejected answer for themselves"
        problems.append(("loss_type", UserError(message, f"{where}: loss_type", advice)))
    elif "aot_pair" in losses:
        flat["loss_type"] = ["aot" if x == "aot_pair" else x for x in losses]
        changes.append(Change("loss_type", "changed", "aot", "the loss aot_pair is called aot now"))


def _mixer(flat: dict[str, Any], where: str, changes: list[Change], problems: list[Problem]) -> None:
    """`dataset_mixer` and `dataset_splits` of the handbook → `dataset_mixture`."""
    mixer, splits = flat.pop("dataset_mixer", None), flat.pop("dataset_splits", None)
    if mixer is None:
        if splits is not None:
            error = UserError("dataset_splits belongs to dataset_mixer, which is not here", where, "remove it")
            problems.append(("dataset_splits", error))
        return
    if not isinstance(mixer, dict) or not mixer:
        error = UserError("dataset_mixer must map dataset ids to weights", where, "see docs/recipes.md")
        problems.append(("dataset_mixer", error))
        return
    if "dataset_mixture" in flat:
        error = UserError("dataset_mixer and dataset_mixture both name data", where, "keep dataset_mixture")
        problems.append(("dataset_mixer", error))
        return
    had_splits = splits is not None
    splits = [splits] if isinstance(splits, str) else splits or ["train"]
    if not isinstance(splits, list) or not all(isinstance(s, str) for s in splits):
        error = UserError("dataset_splits must be a list of names", where, "see docs/recipes.md")
        problems.append(("dataset_splits", error))
        return
    train = [s for s in splits if "train" in s] or splits[:1]
    test = [s for s in splits if "test" in s]
    flat["dataset_mixture"] = {
        "datasets": [
            {"id": d, "split": t, "weight": w, "test_split": test[0] if test else None}
            for d, w in mixer.items()
            for t in train
        ]
    }
    names = "dataset_mixer and dataset_splits are" if had_splits else "dataset_mixer is"
    changes.append(Change("dataset_mixer", "moved", "dataset_mixture.datasets", f"{names} called dataset_mixture now"))
    if had_splits:
        changes.append(Change("dataset_splits", "moved", "dataset_mixture.datasets"))
