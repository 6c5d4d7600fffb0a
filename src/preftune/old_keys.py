"""Keys that older versions of TRL, transformers and alignment-handbook had, and keys that preftune does not leave to
a recipe: what each is called now, or why it has no effect.

`translate.py` applies the tables. The reasons are what a user reads: in a run's notices and in `check --keys`.
"""

from dataclasses import dataclass
from typing import Any, Literal

from preftune.errors import UserError

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "model_max_length": "max_length",
    "preprocessing_num_workers": "dataset_num_proc",
    "hub_model_revision": "hub_revision",
    "push_to_hub_model_id": "hub_model_id",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}

# Two names of one thing in the installed versions: no notice, but one place to look the value up.
ALIASES = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}

_TRAINER = "transformers no longer has it"
_TPU = "it was for TPUs"
_PUSH = "a policy is pushed once, after its verdict"
_CUT = "max_length limits prompt and answer together, and the end of the answer is cut"

# Gone from the libraries, or without an effect in what preftune does.
NO_EFFECT = {
    # alignment-handbook
    "auto_insert_empty_system_msg": "messages are trained on as they are: no empty system message is added",
    "base_model_revision": "a run starts from a whole model; an adapter is merged into its base model first",
    "benchmarks": "preftune measures what stands under evaluation",
    "callbacks": "preftune's own are always on",
    "dataset_configs": "write config for each entry of dataset_mixture.datasets",
    "max_source_length": _CUT,
    "model_code_revision": "code from a model's repository is not run",
    "overwrite_hub_revision": _PUSH,
    "push_to_hub_revision": "it belonged to its authors' own scripts; write push_to_hub: true",
    "text_column": "it is for texts without preferences",
    "tokenizer_name_or_path": "the tokenizer is the model's own",
    "truncation_side": "the end of the answer is cut (truncation_mode: keep_start)",
    "trust_remote_code": "code from a model's repository is not run; a model that needs it cannot be loaded",
    "wandb_entity": "set the environment variable WANDB_ENTITY",
    "wandb_project": "set the environment variable WANDB_PROJECT",
    "wandb_run_group": "set the environment variable WANDB_RUN_GROUP",
    # TRL
    "base_model_attribute_name": "TRL finds the base model itself now",
    "dataset_kwargs": "conversion is preftune's own",
    "dataset_streaming": "write streaming: true and max_rows for an entry of dataset_mixture.datasets",
    "force_use_ref_model": "the reference is always the starting model",
    "generate_during_eval": "preftune measures the answers of both models after the training",
    "gradient_checkpointing_use_reentrant": "write gradient_checkpointing_kwargs: {use_reentrant: …}",
    "ignore_bias_buffers": "it was a way around an old fault of distributed training",
    "is_encoder_decoder": "only causal language models are trained",
    "label_pad_token_id": "TRL masks prompts and padding itself now",
    "max_completion_length": _CUT,
    "max_prompt_length": "TRL has no separate limit for prompts now; " + _CUT,
    "max_seq_length": "it is for SFT; write max_length",
    "max_target_length": _CUT,
    "model_adapter_name": "TRL names adapters itself now",
    "padding_free": "TRL 1.16 pads as always, whatever stands here",
    "ref_adapter_name": "the reference is the starting model: with LoRA, the same weights without the adapter",
    "ref_model_init_kwargs": "the reference is loaded as the model is",
    "tools": "tools belong to the rows of the data",
    "use_liger_loss": "TRL always computes log-probabilities without keeping all logits now",
    "use_logits_to_keep": "TRL always computes log-probabilities without keeping all logits now",
    "use_num_logits_to_keep": "TRL always computes log-probabilities without keeping all logits now",
    # transformers
    "dispatch_batches": "write accelerator_config: {dispatch_batches: …}",
    "fp16_backend": _TRAINER,
    "fp16_opt_level": _TRAINER,
    "group_by_length": "transformers finds no length in a pair",
    "half_precision_backend": _TRAINER,
    "hub_always_push": _PUSH,
    "hub_strategy": _PUSH,
    "include_inputs_for_metrics": "there are no metrics of one's own to compute",
    "include_tokens_per_second": "preftune records the tokens and the time of a training",
    "jit_mode_eval": _TRAINER,
    "label_smoothing_factor": "the losses here know label_smoothing only",
    "logging_dir": "TensorBoard's logs go to output_dir/runs",
    "mp_parameters": _TRAINER,
    "overwrite_output_dir": "output_dir is replaced as a whole when a run ends",
    "past_index": _TRAINER,
    "push_to_hub_organization": "write it into hub_model_id: organization/name",
    "ray_scope": _TRAINER,
    "save_safetensors": "weights are always saved as safetensors",
    "sharded_ddp": "write accelerate_config: fsdp or zero3",
    "split_batches": "write accelerator_config: {split_batches: …}",
    "torchdynamo": "write torch_compile_backend",
    "tpu_metrics_debug": _TPU,
    "tpu_num_cores": _TPU,
    "use_ipex": _TRAINER,
    "use_mps_device": _TRAINER,
    "xpu_backend": "write ddp_backend",
}

_LAUNCHER = "it belongs to the accelerate configuration: write accelerate_config: fsdp or zero3"
_TOKEN = "a recipe is logged and published: put the token into the environment variable HF_TOKEN"

# Keys that preftune sets itself, or that break one of its promises.
REFUSED = {
    "resume_from_checkpoint": "preftune resumes by itself, from the newest whole checkpoint",
    "auto_find_batch_size": "it shrinks the effective batch in silence; set per_device_train_batch_size",
    "save_only_model": "without the optimizer's state a killed run could not be resumed exactly",
    "enable_jit_checkpoint": "a run that is ended by a signal saves and goes on by itself",
    "ignore_data_skip": "a resumed run would see other pairs than one that was never killed",
    "hub_token": _TOKEN,
    "push_to_hub_token": _TOKEN,
    "local_rank": "the launcher sets it",
    "deepspeed": _LAUNCHER,
    "fsdp": _LAUNCHER,
    "fsdp_config": _LAUNCHER,
    "parallelism_config": _LAUNCHER,
    "model_init_kwargs": "TRL passes it over for a model that is loaded already; write dtype, attn_implementation, "
    "model_revision",
    "reference_free": "TRL no longer has DPO without a reference; method: orpo trains without one",
}

Kind = Literal["kept", "renamed", "moved", "changed", "no effect", "refused"]


@dataclass(frozen=True)
class Change:
    """What became of one key of the file.

    Args:
        key: As written.
        kind: What happened to it.
        became: The key or value it is now; empty if it is gone.
        notice: What that changes, in words; empty if nothing is to be told when a run starts.
    """

    key: str
    kind: Kind
    became: str = ""
    notice: str = ""


Problem = tuple[str, UserError]  # the key in the file, and what is wrong with it


def is_off(value: Any) -> bool:
    """Whether a switch is off or a key left open, so that nothing is lost without it."""
    return value is None or value is False or value in ([], {}, "")
