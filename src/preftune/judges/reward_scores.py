"""The reward model's child: one score for each conversation.

Started as `python -m preftune.judges.reward_scores JOB.json`, since the flow's own process never imports torch.
"""

import json
import math
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from preftune.children import child_main, die_with_parent, read_json_lines, tell
from preftune.content_cache import ContentCache
from preftune.errors import UserError
from preftune.progress import clock


def _load(job: dict[str, Any]) -> tuple[Any, Any]:
    """(tokenizer, model). Weights that are missing would be made up at random: that is an error here."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    where, source = f"{job['place']}.model: {job['name']}", {"trust_remote_code": False}
    if job["revision"]:
        source["revision"] = job["revision"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(job["model_path"], **source)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            job["model_path"], dtype=job["dtype"], use_safetensors=True, output_loading_info=True, **source
        )
    except (OSError, ValueError) as e:
        raise UserError(
            f"the reward model cannot be loaded: {str(e).strip().splitlines()[0]}",
            where,
            "it must be one that transformers knows, without code of its own, with weights in safetensors",
        ) from None
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"the reward model's file lacks weights: {', '.join(missing[:3])}", where, "name a whole one")
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    return tokenizer, model.to(device).eval()


def token_ids(tokenizer: Any, row: dict[str, Any]) -> list[int] | None:
    """The ids of prompt and answer in the model's own chat template.

    Returns:
        None if the template refuses the conversation (as some do with a system message).
    """
    from jinja2 import TemplateError

    messages = [*row["prompt"], {"role": "assistant", "content": row["text"]}]
    try:
        return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))
    except TemplateError:
        return None


def score_batch(model: Any, batch: list[list[int]], pad_id: int) -> list[float]:
    """The model's one output for each sequence.

    Args:
        model: A sequence classifier.
        batch: Token ids; padded on the right here.
        pad_id: The model's padding token.
    """
    import torch

    width = max(map(len, batch))
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in batch], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=model.device)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()


def score(job: dict[str, Any]) -> None:
    """Scores conversations, the longest first; what a batch gave is kept at once.

    Args:
        job: `folder` (with rows.jsonl: key, prompt, text), `cache` (folder), `model_path`, `name`, `place`, `revision`,
            `dtype`, `batch_size`, `max_length`, `threads`.

    Writes:
        scores.jsonl: key, score (null if there is none), error (null, `template` or `not_finite`).
    """
    import torch

    torch.set_num_threads(job["threads"])
    folder = Path(job["folder"])
    rows = read_json_lines(folder / "rows.jsonl")
    tokenizer, model = _load(job)
    config = model.config.get_text_config()
    limit = min(job["max_length"], getattr(config, "max_position_embeddings", None) or job["max_length"])
    tokens = [(row["key"], token_ids(tokenizer, row)) for row in rows]
    todo = sorted(((key, ids[-limit:]) for key, ids in tokens if ids), key=lambda t: -len(t[1]))
    # Where a model names no padding token, transformers takes one sequence at a time and no more.
    size = 1 if config.pad_token_id is None else job["batch_size"]
    if cut := sum(len(ids) > limit for _, ids in tokens if ids):
        tell(f"reward model: {cut} of {len(todo)} conversations are longer than {limit} tokens: cut at the start")
    began, told = time.monotonic(), 0.0
    with (
        closing(ContentCache(Path(job["cache"]), "judgements", tell)) as cache,
        (folder / "scores.jsonl").open("w") as out,
    ):
        for key, ids in tokens:
            if not ids:
                out.write(json.dumps({"key": key, "score": None, "error": "template"}) + "\n")
        for start in range(0, len(todo), size):
            batch = todo[start : start + size]
            found = score_batch(model, [ids for _, ids in batch], config.pad_token_id or 0)
            for (key, _), value in zip(batch, found, strict=True):
                finite = math.isfinite(value)
                if finite:
                    cache.add(key, value)
                error = None if finite else "not_finite"
                out.write(json.dumps({"key": key, "score": value if finite else None, "error": error}) + "\n")
            done, took = start + len(batch), time.monotonic() - began
            if done == len(todo) or took - told > 10:
                told = took
                left = f", about {clock(took / done * (len(todo) - done))} left" if done < len(todo) else ""
                tell(f"reward model: {done}/{len(todo)} answers scored ({clock(took)}{left})")


if __name__ == "__main__":
    die_with_parent()
    child_main(score)
