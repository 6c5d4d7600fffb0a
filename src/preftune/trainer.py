"""What preftune adds to TRL's trainers themselves. The callbacks stand in callbacks.py.

Imported in the training child only.
"""

import json
from pathlib import Path
from typing import Any

from trl import DPOTrainer

METRICS_STATE = "preftune_metrics.json"


class ResumableDPOTrainer(DPOTrainer):
    """TRL's trainer, whose logged metrics survive a resume: TRL keeps its running sums in memory only."""

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
