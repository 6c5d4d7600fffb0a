"""An lm-eval task built from the held-out pairs: does the model give the chosen answer the higher likelihood?

lm-eval's own `acc` (summed log-likelihood) and `acc_norm` (per character), on the prompt as the model's chat
template renders it.
"""

# lm-eval's decorators hide its signatures from the type checker.
# pyright: reportCallIssue=false, reportTypedDictNotRequiredAccess=false

import hashlib
import json
from pathlib import Path
from typing import Any

from preftune.data.pairs import Pair

TASK = "preference_pairs"


def write_task(tokenizer: Any, pairs: list[Pair], folder: Path) -> None:
    """Writes the task's YAML and its documents.

    Args:
        tokenizer: Renders the prompts.
        pairs: The held-out pairs; the first choice of every document is the chosen answer.
        folder: Where the two files go.
    """
    docs = folder / f"{TASK}.jsonl"
    with docs.open("w") as f:
        for pair in pairs:
            context = tokenizer.apply_chat_template(pair.prompt, tokenize=False, add_generation_prompt=True)
            answers = [pair.chosen[-1]["content"], pair.rejected[-1]["content"]]
            f.write(json.dumps({"row_id": pair.row_id, "context": context, "answers": answers, "label": 0}) + "\n")
    config = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(docs)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{answers}}",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
        "metadata": {"version": 1.0},
    }
    (folder / f"{TASK}.yaml").write_text(json.dumps(config, indent=1))  # JSON is YAML


def run_pairs_task(model: Any, tokenizer: Any, pairs: list[Pair], folder: Path, batch_size: int) -> None:
    """Runs the task on a model in memory; writes `lm_eval.json` and `lm_eval.jsonl` (a line a document)."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    task_folder = folder / "lm_eval_task"
    task_folder.mkdir(exist_ok=True)
    write_task(tokenizer, pairs, task_folder)
    # The context holds the template's own start token already.
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=False)
    found = lm_eval.simple_evaluate(
        model=lm,
        tasks=[TASK],
        task_manager=TaskManager(include_path=str(task_folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        random_seed=0,
        numpy_random_seed=0,
        torch_random_seed=0,
        fewshot_random_seed=0,
    )
    assert found is not None
    metrics = ("acc", "acc_norm")
    samples = sorted(found["samples"][TASK], key=lambda s: s["doc_id"])
    results = {
        "metrics": {k.removesuffix(",none"): v for k, v in found["results"][TASK].items() if isinstance(v, float)},
        "main": "acc",
        "higher_is_better": dict.fromkeys(metrics, True),
        "binary": dict.fromkeys(metrics, True),
        "n": len(samples),
    }
    (folder / "lm_eval.json").write_text(json.dumps({TASK: results}, indent=1))
    with (folder / "lm_eval.jsonl").open("w") as f:
        for sample, pair in zip(samples, pairs, strict=True):
            row = {"task": TASK, "doc_id": sample["doc_id"], "id": pair.row_id}
            row["digest"] = hashlib.sha256(sample["doc"]["context"].encode()).hexdigest()[:16]
            row["cluster"] = pair.group_id
            f.write(json.dumps({**row, "metrics": {m: sample[m] for m in metrics}}) + "\n")
