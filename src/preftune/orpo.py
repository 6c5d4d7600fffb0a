"""TRL's ORPO trainer, whose logged metrics survive a resume.

ORPO (Hong et al., arXiv 2403.07691) needs no reference: its loss is the chosen answers' NLL and a log odds ratio.
"""

import json
from pathlib import Path
from typing import Any

from trl.experimental.orpo import ORPOTrainer

from preftune.trainer import METRICS_STATE


class ResumableORPOTrainer(ORPOTrainer):
    """ORPO's trainer; its metrics of the steps since the last log line go into the checkpoint."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"
            (folder / METRICS_STATE).write_text(json.dumps({"metrics": self._stored_metrics["train"]}))

    def restore_metrics(self, checkpoint: Path) -> None:
        """Takes up the metrics of a checkpoint that training is about to resume from."""
        state = json.loads((checkpoint / METRICS_STATE).read_text())
        self._stored_metrics["train"].update(state["metrics"])
