"""Settings that are right one by one and wrong together: what TRL and transformers would raise on, or pass over in
silence, after the model was loaded. Told from the recipe alone.

The rules are those of `DPOConfig`, `DPOTrainer.__init__`, `TrainingArguments` and the learning-rate schedules of the
versions named in known_keys.json.
"""

from typing import Any

from preftune.errors import UserError
from preftune.known_keys import specs
from preftune.losses import NOT_BY_PAIR
from preftune.old_keys import Problem

# The f-divergence's β·log Z cancels only in losses on the difference of chosen and rejected (TRL's own list).
F_DIVERGENCE_LOSSES = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
TRACKERS = ("none", "tensorboard", "wandb")


class _Settings:
    """The recipe's value of a key, else TRL's default; and what is wrong, as it is found."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values, self.where = values, where
        self.problems: list[Problem] = []

    def __getitem__(self, key: str) -> Any:
        return self.values.get(key, specs()[key]["default"])

    def wrong(self, key: str, message: str, advice: str) -> None:
        self.problems.append((key, UserError(message, f"{self.where}: {key}", advice)))


def conflicts(method: str, values: dict[str, Any], where: str) -> list[Problem]:
    """What is wrong between the values of TRL's keys.

    Args:
        method: `dpo` or `orpo`.
        values: TRL's keys (model, training, hub), `merge_adapter` and `micro_batch_tokens`, each already of its type
            and range.
        where: File, for messages.

    Returns:
        Key and error of each conflict, in a fixed order.
    """
    s = _Settings(values, where)
    _model(s, method)
    if method == "dpo":
        _losses(s)
        _reference(s)
    elif s["max_length"] is None:
        s.wrong("max_length", "ORPO needs a limit: TRL would take 512 without asking", "for example max_length: 1024")
    _pieces(s, method)
    _precision(s)
    _strategies(s)
    _schedule(s)
    _others(s)
    return s.problems


def _model(s: _Settings, method: str) -> None:
    quantized = [k for k in ("load_in_4bit", "load_in_8bit") if s[k]]
    if len(quantized) == 2:
        s.wrong("load_in_8bit", "the model cannot be loaded in 4 and in 8 bits", "keep load_in_4bit")
    elif quantized and not s["use_peft"]:
        s.wrong(quantized[0], "quantized weights cannot be trained themselves", "add use_peft: true (QLoRA)")
    if s.values.get("merge_adapter") and not s["use_peft"]:
        s.wrong("merge_adapter", "no adapter is trained that could be merged", "add use_peft: true, or remove it")
    if s["use_peft"] and s["lora_task_type"] != "CAUSAL_LM":
        s.wrong("lora_task_type", f"{s['lora_task_type']} adapts another kind of model", "remove it: CAUSAL_LM")
    if method == "dpo" and s["use_peft"] and "lm_head" in (s["lora_target_modules"] or []):
        s.wrong("lora_target_modules", "an adapter on lm_head is never trained by TRL's DPO", "take lm_head out")


def _pieces(s: _Settings, method: str) -> None:
    whole = ["orpo"] if method == "orpo" else [loss for loss in s["loss_type"] if loss in NOT_BY_PAIR]
    if s.values.get("micro_batch_tokens") and whole:
        message = f"{whole[0]} looks at a micro-batch as a whole: in pieces it would be another loss"
        s.wrong("micro_batch_tokens", message, "remove it, and lower per_device_train_batch_size")


def _losses(s: _Settings) -> None:
    losses, weights, smoothing = s["loss_type"], s["loss_weights"], s["label_smoothing"]
    if weights is not None and len(weights) != len(losses):
        message = f"{len(weights)} weights for {len(losses)} losses ({', '.join(losses)})"
        s.wrong("loss_weights", message, "write one weight for each entry of loss_type")
    if weights is not None and not all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights):
        s.wrong("loss_weights", "a weight is not a number", "for example loss_weights: [0.8, 0.2]")
    if not losses:
        s.wrong("loss_type", "no loss is named", "for example loss_type: [sigmoid]")
    if "exo_pair" in losses and not 0 < smoothing < 1:
        advice = "the EXO paper takes label_smoothing: 1e-3"
        s.wrong("label_smoothing", "exo_pair needs a label_smoothing above 0 and below 1", advice)
    if "robust" in losses and smoothing >= 0.5:
        message = f"{smoothing:g} says that half of the labels or more are wrong: the loss robust divides by 1 - 2 x"
        s.wrong("label_smoothing", message, "it must be below 0.5, for example 0.1")
    divergence = s["f_divergence_type"]
    if divergence != "reverse_kl" and (others := [x for x in losses if x not in F_DIVERGENCE_LOSSES]):
        message = f"{divergence} is not defined for the loss {others[0]}"
        s.wrong("f_divergence_type", message, f"remove it, or take a loss of {', '.join(sorted(F_DIVERGENCE_LOSSES))}")
    if s["use_weighting"] and (sorting := [x for x in losses if x.startswith("aot")]):
        s.wrong("use_weighting", f"the loss {sorting[0]} sorts the batch: weights would meet other pairs", "remove it")


def _reference(s: _Settings) -> None:
    if not s["sync_ref_model"]:
        return
    if s["use_peft"]:
        message = "with LoRA there is no reference model that could follow: it is the model without its adapter"
        s.wrong("sync_ref_model", message, "remove it, or train all weights (use_peft: false)")
    if s["precompute_ref_log_probs"]:
        message = "a reference that moves cannot be computed beforehand"
        s.wrong("precompute_ref_log_probs", message, "remove it: sync_ref_model switches it off")


def _precision(s: _Settings) -> None:
    for a, b in (("bf16", "fp16"), ("bf16_full_eval", "fp16_full_eval")):
        if s[a] and s[b]:
            s.wrong(b, f"{a} and {b} exclude each other", f"keep {a}; on a T4 or V100 keep {b}")


def _strategies(s: _Settings) -> None:
    whole = True
    for strategy, steps in (
        ("logging_strategy", "logging_steps"),
        ("eval_strategy", "eval_steps"),
        ("save_strategy", "save_steps"),
    ):
        value = s[steps]
        if s[strategy] == "steps" and value is not None and value > 1 and value != int(value):
            s.wrong(steps, f"{value:g} steps: above 1 it must be a whole number", "below 1 it is a share of all steps")
            whole = False
    evaluates = s["eval_strategy"] != "no"
    if s["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy") and not evaluates:
        s.wrong("lr_scheduler_type", f"{s['lr_scheduler_type']} follows eval/loss", "add eval_strategy: steps")
    if s["save_strategy"] == "best" and not evaluates:
        s.wrong("save_strategy", "best is told by eval/loss, and nothing is evaluated", "add eval_strategy: steps")
    if s["save_strategy"] == "best" and s["metric_for_best_model"] is None:
        s.wrong("save_strategy", "best of what: metric_for_best_model is missing", "add metric_for_best_model: loss")
    if not s["load_best_model_at_end"] or s["save_strategy"] == "best":
        return
    if s["eval_strategy"] != s["save_strategy"]:
        message = f"it needs eval_strategy and save_strategy alike (now {s['eval_strategy']} and {s['save_strategy']})"
        s.wrong("load_best_model_at_end", message, "write the same for both, for example steps")
    elif s["eval_strategy"] == "steps" and whole:
        every = s["eval_steps"] or s["logging_steps"]
        mixed = (every < 1) != (s["save_steps"] < 1)
        if mixed or round(s["save_steps"] * 1_000_000) % round(every * 1_000_000):
            message = f"save_steps ({s['save_steps']:g}) must be a multiple of eval_steps ({every:g})"
            s.wrong("load_best_model_at_end", message, "a checkpoint is needed wherever the best could be")


def _schedule(s: _Settings) -> None:
    kind, settings = s["lr_scheduler_type"], s["lr_scheduler_kwargs"]
    settings = settings if isinstance(settings, dict) else {}
    where = "lr_scheduler_kwargs"
    if kind in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        given = [k for k in ("min_lr", "min_lr_rate") if settings.get(k) is not None]
        if len(given) != 1:
            message = f"{kind} needs one of min_lr and min_lr_rate ({len(given)} given)"
            s.wrong(where, message, "for example lr_scheduler_kwargs: {min_lr_rate: 0.1}")
    if kind == "warmup_stable_decay" and "num_decay_steps" not in settings:
        s.wrong(where, f"{kind} needs num_decay_steps", "for example lr_scheduler_kwargs: {num_decay_steps: 100}")
    end = settings.get("lr_end", 1e-7)
    if kind == "polynomial" and isinstance(end, int | float) and end >= s["learning_rate"]:
        s.wrong(where, f"lr_end ({end:g}) is not below learning_rate", "for example lr_scheduler_kwargs: {lr_end: 0}")


def _others(s: _Settings) -> None:
    if s["dataloader_prefetch_factor"] is not None and not s["dataloader_num_workers"]:
        advice = "add dataloader_num_workers: 2, or remove it"
        s.wrong("dataloader_prefetch_factor", "only worker processes fetch ahead", advice)
    if (strategy := s["train_sampling_strategy"]) in ("group_by_length", "batch_rebalance"):
        s.wrong("train_sampling_strategy", f"{strategy} looks for one length, which a pair has not", "remove it")
    if (s["liger_kernel_config"] or {}).get("fused_linear_cross_entropy"):
        message = "fused_linear_cross_entropy would replace the forward pass that TRL computes log-probabilities in"
        s.wrong("liger_kernel_config", message, "take it out")
    for name in s["report_to"] or []:
        if name not in TRACKERS:
            advice = "name tensorboard or wandb; preftune records in MLflow itself"
            s.wrong("report_to", f"{name!r} is not served", advice)
    if s["push_to_hub"] and not s["hub_model_id"]:
        s.wrong("push_to_hub", "hub_model_id is missing: where to", "for example hub_model_id: my-name/my-first-dpo")
