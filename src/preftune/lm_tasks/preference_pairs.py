"""The held-out pairs as an lm-eval task: does the model give the chosen answer the higher likelihood?

lm-eval's own `acc` (summed log-likelihood) and `acc_norm` (per character), on the prompt as the model's chat
template renders it.
"""

from collections.abc import Sequence
from typing import Any

from preftune.data.pairs import Pair
from preftune.lm_tasks.documents import as_dataset

NAME = "preference_pairs"


def preference_pairs(tokenizer: Any, pairs: Sequence[Pair]) -> dict[str, Any]:
    """The task's configuration, as `TaskManager.load` takes it.

    Args:
        tokenizer: Renders the prompts.
        pairs: The held-out pairs; the first choice of every document is the chosen answer.
    """
    rows = [
        {
            "row_id": pair.row_id,
            "cluster": pair.group_id,
            "context": tokenizer.apply_chat_template(pair.prompt, tokenize=False, add_generation_prompt=True),
            "answers": [pair.chosen[-1]["content"], pair.rejected[-1]["content"]],
            "label": 0,
        }
        for pair in pairs
    ]
    return {
        "task": NAME,
        "custom_dataset": lambda **_: as_dataset(rows),
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{answers}}",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
        "metadata": {"version": 1.0},
    }
