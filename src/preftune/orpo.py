"""TRL's ORPO trainer, whose logged metrics survive a resume, on packed rows.

ORPO (Hong et al., arXiv 2403.07691) needs no reference: its loss is the chosen answers' NLL and a log odds ratio.
"""

import json
from pathlib import Path
from typing import Any

from trl.experimental.orpo import ORPOTrainer
from trl.trainer.utils import add_fused_lm_head

from preftune.fast_path import switch_on
from preftune.trainer import METRICS_STATE


class ResumableORPOTrainer(ORPOTrainer):
    """ORPO's trainer; its metrics of the steps since the last log line go into the checkpoint.

    Micro-batches are not sorted by length: the NLL is a mean over a micro-batch's tokens.

    Args:
        fast_path: `auto`, or `off`: TRL's own forward passes.
        options: TRL's.

    Attributes:
        fast_path: `on`, or why it is off.
    """

    def __init__(self, *, fast_path: str = "auto", **options: Any) -> None:
        super().__init__(**options)
        self.fast_path = switch_on(self, _give_head) if fast_path == "auto" else "switched off"

    def concatenated_forward(self, model: Any, batch: Any) -> Any:
        """As TRL's: (chosen and rejected log-probabilities a token, their logits, the chosen answers' NLL).

        The logits serve TRL for one metric, their mean: here they are the mean logits of the answers' tokens, TRL's
        mean includes the prompts and the padding.
        """
        if self.fast_path != "on":
            return super().concatenated_forward(model, batch)
        padding: Any = self.padding_value
        rows: Any = self.concatenated_inputs(batch, padding_value=padding, device=self.accelerator.device)
        labels = rows["concatenated_labels"]
        of_answer = (labels != -100)[:, 1:]
        pairs = len(labels) // 2
        scored = of_answer.clone()
        scored[:pairs] = rows["concatenated_attention_mask"][:pairs, 1:] == 1  # the NLL is of the chosen prompts, too
        found = model(
            input_ids=rows["concatenated_input_ids"],
            attention_mask=rows["concatenated_attention_mask"],
            labels=labels,
            scored=scored,
            fused_lm_head=True,
            use_cache=False,
        )
        nll = -found.log_probs[:pairs].sum() / scored[:pairs].sum()
        logps = (found.log_probs * of_answer).sum(-1) / of_answer.sum(-1)
        sides = slice(None, pairs), slice(pairs, None)
        logits = [found.mean_logits[side][of_answer[side]] for side in sides]
        return *(logps[side] for side in sides), *logits, nll

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"
            (folder / METRICS_STATE).write_text(json.dumps({"metrics": self._stored_metrics["train"]}))

    def restore_metrics(self, checkpoint: Path) -> None:
        """Takes up the metrics of a checkpoint that training is about to resume from."""
        state = json.loads((checkpoint / METRICS_STATE).read_text())
        self._stored_metrics["train"].update(state["metrics"])


def _give_head(model: Any) -> None:
    """TRL's fused LM head, which its DPO trainer brings and its ORPO trainer doesn't."""
    add_fused_lm_head(model, outputs=("log_probs", "mean_logits"))
