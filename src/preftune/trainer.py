"""What preftune adds to TRL's trainers themselves. The callbacks stand in callbacks.py.

Imported in the training child only.
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader
from trl import DPOConfig, DPOTrainer
from trl.models import prepare_deepspeed

from preftune.children import tell
from preftune.digest import json_digest, library_versions
from preftune.errors import UserError
from preftune.fast_path import switch_on
from preftune.losses import NOT_BY_PAIR
from preftune.reference_cache import LogPs, ReferenceCache, pair_key
from preftune.sorted_batches import SortedWithinSteps, pieces, widths

METRICS_STATE = "preftune_metrics.json"
_TOKENS = ["prompt_ids", "chosen_ids", "rejected_ids"]
_SECONDS_BETWEEN_LINES = 10


class ResumableDPOTrainer(DPOTrainer):
    """TRL's trainer, with three differences.

    Its logged metrics survive a resume: TRL keeps its running sums in memory only. With `precompute_ref_log_probs`,
    the reference's log-probabilities are kept pair by pair; TRL keeps them by dataset, under a name that changes with
    the seed, the adapter and most settings, but not with `max_length` where the end is kept. And it is faster, with
    the same losses: packed rows (fast_path.py), sorted micro-batches (sorted_batches.py), and a dataset that holds
    token ids already is taken as it is.

    Args:
        reference_cache: Folder of the values. They are those of one reference model's weights: each has its own folder.
        fast_path: `auto`, or `off`: TRL's own forward passes and micro-batches.
        micro_batch_tokens: Where a micro-batch's packed rows take more tokens than this, padding included, it goes
            through the model in pieces; the gradient is the same.
        options: TRL's.

    Attributes:
        fast_path: `on`, or why it is off.

    Raises:
        UserError: If `micro_batch_tokens` is given to several processes, or with DeepSpeed.
    """

    def __init__(
        self,
        *,
        reference_cache: Path,
        fast_path: str = "auto",
        micro_batch_tokens: int | None = None,
        **options: Any,
    ) -> None:
        self._reference_folder = reference_cache
        self._asked, self._micro_batch_tokens = fast_path, micro_batch_tokens
        self._share = 1.0  # of the micro-batch that is in the forward pass
        self.fast_path: str | None = None
        self.reference_seconds = 0.0
        self.reference_counts: dict[str, dict[str, int]] = {}  # dataset → its pairs, cached and computed ones
        args = options["args"]
        if micro_batch_tokens and (args.world_size > 1 or args.deepspeed_plugin):
            # Processes would cut their micro-batches into different numbers of pieces, and wait for each other for
            # ever; DeepSpeed counts backward passes to know when a step is whole.
            advice = "remove it, and lower per_device_train_batch_size"
            raise UserError(
                "micro_batch_tokens needs a single process, without DeepSpeed", "micro_batch_tokens", advice
            )
        if args.precompute_ref_log_probs and options.get("peft_config") and parse_flag_from_env("ACCELERATE_USE_FSDP"):
            # TRL would run the adapter's base model before it is sharded: on the CPU, and empty on all ranks but one.
            tell("FSDP with an adapter: reference log-probabilities are computed in each step, not cached")
            args.precompute_ref_log_probs = False
        super().__init__(**options)  # computes the reference of its datasets
        if self.precompute_ref_logps:
            self.ref_model = None  # under FSDP there was a copy, for this alone
        self._switch_on()

    def _switch_on(self) -> None:
        """Installs the fast path; while TRL's `__init__` still runs, if it computes the reference."""
        if self.fast_path is None:
            self.fast_path = switch_on(self) if self._asked == "auto" else "switched off"

    def get_train_dataloader(self) -> Any:
        """TRL's, whose micro-batches hold pairs of like width."""
        loader: Any = super().get_train_dataloader()
        args: Any = self.args
        if self._asked == "auto" and not NOT_BY_PAIR & set(self.loss_types):
            size = args.train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
            order = SortedWithinSteps(loader.get_sampler(), widths(self.train_dataset, args.max_length), size)
            loader.set_sampler(order)
        return loader

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """TRL's; in pieces, where a micro-batch has more tokens than `micro_batch_tokens`."""
        parts = pieces(inputs, self._micro_batch_tokens) if self._micro_batch_tokens else [(1.0, inputs)]
        metrics = self._metrics["train"]
        before = {name: len(values) for name, values in metrics.items()}
        losses = []
        for self._share, part in parts:
            losses.append(super().training_step(model, part, num_items_in_batch))
        self._share = 1.0
        if len(parts) > 1:  # one entry in each metric, as of the whole
            for name, values in metrics.items():
                new = values[before.get(name, 0) :]
                if len(new) == len(parts):
                    mean = sum(share * value for (share, _), value in zip(parts, new, strict=True))
                    values[before.get(name, 0) :] = [mean]
        return sum(losses)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's; of a piece of a micro-batch, its share."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return found if return_outputs else found * self._share

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            state = {"tokens": self._total_train_tokens, "metrics": self._metrics["train"]}
            folder = Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"
            (folder / METRICS_STATE).write_text(json.dumps(state))

    def restore_metrics(self, checkpoint: Path) -> None:
        """Takes up the running sums of a checkpoint that training is about to resume from."""
        state = json.loads((checkpoint / METRICS_STATE).read_text())
        self._total_train_tokens = state["tokens"]
        self._metrics["train"].update(state["metrics"])

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Dataset:
        """In place of TRL's: only pairs that the cache does not know go through the model.

        Args:
            dataset: Tokenized pairs.
            name: `train`, `eval`, or as the caller of `evaluate` named it.
            batch_size: Pairs at once on each device.

        Returns:
            The dataset with the columns `ref_chosen_logps` and `ref_rejected_logps`, float32, in nats.
        """
        began = time.monotonic()
        self._switch_on()
        keys: list[bytes] = []
        known: dict[bytes, LogPs] = {}
        missing: list[Any] = [None]
        cache = ReferenceCache(self._reference_folder) if self.accelerator.is_main_process else None
        if cache:
            keys, of_row = self._keys(dataset), widths(dataset, cast("DPOConfig", self.args).max_length)
            known = cache.get(keys)
            first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
            # Sorted by width, batches hold little padding; the widest first, memory that is too small shows at once.
            missing = [sorted(first.values(), key=lambda i: (-of_row[i], i))]
            counts = {"pairs": len(keys), "cached": sum(key in known for key in keys), "computed": len(first)}
            self.reference_counts[name] = counts
        broadcast_object_list(missing)
        for rows, values in self._score(dataset, missing[0], name, batch_size):
            if cache:
                known |= cache.add({keys[i]: v for i, v in zip(rows, values, strict=True)})
        columns: list[Any] = [np.array([known[key] for key in keys], np.float32).reshape(-1, 2)]
        broadcast_object_list(columns)
        if cache:
            cache.close()
            tell(_summary(name, **self.reference_counts[name]))
        self.reference_seconds += time.monotonic() - began
        chosen, rejected = columns[0].T
        reference = Dataset.from_dict({"ref_chosen_logps": chosen, "ref_rejected_logps": rejected})
        return concatenate_datasets([dataset, reference], axis=1)

    def _keys(self, dataset: Any) -> list[bytes]:
        """Each pair's key in the cache."""
        model, args = cast("Any", self.model), cast("DPOConfig", self.args)
        quantization = getattr(model.config, "quantization_config", None)
        if quantization is not None and not isinstance(quantization, dict):
            quantization = quantization.to_dict()
        # What a value depends on besides the weights and the token ids.
        scoring = json_digest(
            {
                "dtype": str(model.dtype),
                "mixed_precision": self.accelerator.mixed_precision,
                "tf32": args.tf32,
                "quantization": quantization and json.dumps(quantization, sort_keys=True, default=str),
                "attention": str(model.config._attn_implementation),
                "device": self.accelerator.device.type,
                "ld_alpha": self.ld_alpha,
                "libraries": library_versions("torch", "transformers", "trl", *(["bitsandbytes"] * bool(quantization))),
            }
        )
        limit, keep_end = args.max_length, args.truncation_mode == "keep_end"
        return [pair_key(row, scoring, limit, keep_end) for row in dataset.select_columns(_TOKENS)]

    def _score(
        self, dataset: Any, rows: list[int], name: str, batch_size: int
    ) -> Iterator[tuple[list[int], list[LogPs]]]:
        """Scores these rows in their order with the reference model, as TRL 1.16's `_precompute_ref_logps` does it.

        Yields:
            Row numbers and their values: one batch of every process at a time, the same in all processes.
        """
        if not rows:
            return
        loader = DataLoader(
            dataset.select(rows),
            batch_size=batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            shuffle=False,
        )
        model: Any = self.model
        if self.ref_model is not None:
            model = self.ref_model
        elif self.is_deepspeed_enabled:
            # Not prepared for training yet: its weights would be on the CPU, or in pieces.
            self._precompute_engine = self._precompute_engine or prepare_deepspeed(model, self.accelerator)
            model = self._precompute_engine
        else:
            # No dropout, no router noise: what is kept for ever must not be a draw. But in evaluation mode,
            # bitsandbytes' 4-bit layers on a CPU compute otherwise, and lose precision for good.
            is_4bit = getattr(model, "is_loaded_in_4bit", False)
            model.train(is_4bit and self.accelerator.device.type == "cpu")
        began = told = time.monotonic()
        done = 0
        for batch in self.accelerator.prepare(loader):
            sides = self.accelerator.gather_for_metrics(self.compute_ref_log_probs(model, batch))
            values = list(zip(*(side.float().tolist() for side in sides), strict=True))
            these = rows[done : done + len(values)]
            for row, logps in zip(these, values, strict=True):
                if not all(map(math.isfinite, logps)):
                    raise UserError(
                        f"the starting model gives an answer of {name} pair {row} a likelihood that is not finite",
                        "dtype",
                        "its weights are damaged, or its dtype is too narrow: copy it again, or set dtype: float32",
                    )
            yield these, values
            done += len(these)
            if self.accelerator.is_main_process and time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                tell(f"reference log-probabilities ({name}): {done}/{len(rows)} ({told - began:.0f} s)")

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: DPOConfig, dataset_name: str) -> Any:
        """TRL's, which would tokenize again what the lengths step has tokenized."""
        if "prompt_ids" in dataset.column_names:
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)


def _summary(name: str, pairs: int, cached: int, computed: int) -> str:
    text = f"reference log-probabilities ({name}): {cached} of {pairs} pairs cached, {computed} computed"
    if repeated := pairs - cached - computed:
        text += f", {repeated} equal to another"
    return text
