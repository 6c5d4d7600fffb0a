"""The sampling child: a model's answers to prompts, several to each, every one of them kept when it ends.

Started as `accelerate launch … --module preftune.own_pairs.sampling JOB.json`.
"""

import hashlib
import itertools
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from preftune.children import child_main, die_with_parent, read_json_lines, tell
from preftune.content_cache import ContentCache
from preftune.progress import count_up

CHUNK = 256  # prompts that vLLM answers before any of them is kept
Row = dict[str, Any]
Finished = Callable[[int, list[int], bool], None]  # the prompt's place, the answer without its end token, whole?
Sampler = Callable[[list[list[int]], Row, Finished], None]  # prompts; temperature and seed; what takes each answer


def seed_of(seed: int, number: int) -> int:
    """The seed of the answers with one number. 31 bits, which every server takes; seeds beside each other share none.

    Args:
        seed: The recipe's.
        number: From 0.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4]) >> 1


def _source(job: Row) -> Row:
    return {"revision": job["revision"]} if job["revision"] else {}


def _prompt_ids(tokenizer: Any, prompt: list[dict[str, str]], room: int | None) -> tuple[list[int], str | None]:
    """The prompt's tokens; or why it cannot be answered: `template` (which refuses it), `too_long`."""
    from jinja2 import TemplateError

    from preftune.tokens import tokenize_prompt

    try:
        ids = tokenize_prompt(tokenizer, prompt)
    except TemplateError:
        return [], "template"
    return (ids, None) if room is None or len(ids) <= room else ([], "too_long")


def _by_transformers(job: Row, tokenizer: Any) -> Sampler:
    from preftune.generation import Decoding, generate
    from preftune.loading import end_ids, load_model

    model = load_model(job, tokenizer)
    ends = end_ids(tokenizer, model)

    def answer(prompts: list[list[int]], draw: Row, finished: Finished) -> None:
        generate(
            model,
            prompts,
            Decoding(job["max_new_tokens"], draw["temperature"], job["top_p"], draw["seed"]),
            eos_ids=ends,
            batch_size=job["batch_size"],
            finished=lambda i, a: finished(i, a.ids[: len(a.ids) - a.stopped], a.stopped),
        )

    return answer


def _by_vllm(job: Row, tokenizer: Any, longest: int) -> Sampler:
    """vLLM, for prompts of at most so many tokens. Written after its documentation and tested with a stand-in: it was
    not run for real, since it needs a GPU and a torch of its own."""
    from transformers import AutoConfig, GenerationConfig
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    from preftune.loading import end_ids

    try:
        configured = GenerationConfig.from_pretrained(job["model_path"], **_source(job))
    except OSError:  # there is no such file
        configured = GenerationConfig.from_model_config(AutoConfig.from_pretrained(job["model_path"], **_source(job)))
    ends = end_ids(tokenizer, SimpleNamespace(generation_config=configured))
    model = LLM(
        model=job["model_path"],
        revision=job["revision"],
        tokenizer_revision=job["revision"],
        dtype=job["dtype"],
        seed=job["draws"][0]["seed"],
        max_model_len=longest + job["max_new_tokens"],
        trust_remote_code=False,
    )

    def answer(prompts: list[list[int]], draw: Row, finished: Finished) -> None:
        params = SamplingParams(
            temperature=draw["temperature"],
            top_p=job["top_p"],
            max_tokens=job["max_new_tokens"],
            seed=draw["seed"],
            stop_token_ids=sorted(ends),
        )
        for start in range(0, len(prompts), CHUNK):
            asked = [{"prompt_token_ids": ids} for ids in prompts[start : start + CHUNK]]
            for i, request in enumerate(model.generate(asked, params), start):
                ids = list(request.outputs[0].token_ids)
                finished(i, ids[:-1] if ids and ids[-1] in ends else ids, request.outputs[0].finish_reason == "stop")

    return answer


def sample(job: Row) -> None:
    """Answers prompts, number by number, the longest prompts first.

    Args:
        job: `folder` (with rows.jsonl: `prompt`, and `missing`, which answers it lacks: number → key), `cache`
            (folder), `engine`, `model_path`, `revision`, `chat_template`, `dtype`, `threads`, `draws` (`temperature`
            and `seed` by number), `top_p`, `max_new_tokens`, `batch_size`.

    Writes:
        made.jsonl: key, text, whole (whether it ended by itself), tokens, error (null, `template` or `too_long`).
    """
    import torch

    torch.set_num_threads(job["threads"])
    from transformers import AutoConfig

    from preftune.loading import load_tokenizer

    folder = Path(job["folder"])
    tokenizer = load_tokenizer(job)
    config = AutoConfig.from_pretrained(job["model_path"], **_source(job)).get_text_config(decoder=True)
    context = getattr(config, "max_position_embeddings", None)
    room = context - job["max_new_tokens"] if context else None
    with (
        closing(ContentCache(Path(job["cache"]), "completions", tell)) as cache,
        (folder / "made.jsonl").open("w") as out,
    ):
        asked: list[tuple[list[int], dict[str, str]]] = []
        for row in read_json_lines(folder / "rows.jsonl"):
            ids, error = _prompt_ids(tokenizer, row["prompt"], room)
            if error is None:
                asked.append((ids, row["missing"]))
                continue
            for key in row["missing"].values():
                found = {"text": "", "whole": False, "tokens": None}
                out.write(json.dumps({"key": key, **found, "error": error}) + "\n")
        if not asked:
            return
        longest = max(len(ids) for ids, _ in asked)
        use_vllm = job["engine"] == "vllm"
        answer = _by_vllm(job, tokenizer, longest) if use_vllm else _by_transformers(job, tokenizer)
        total, done = sum(len(missing) for _, missing in asked), itertools.count(1)
        show = count_up("completed answers", tell)

        def keep(key: str, ids: list[int], whole: bool) -> None:
            text = tokenizer.decode(ids, skip_special_tokens=True).strip()
            found = {"text": text, "whole": whole, "tokens": len(ids)}
            cache.add(key, found)
            out.write(json.dumps({"key": key, **found, "error": None}) + "\n")
            show(next(done), total)

        for number, draw in enumerate(job["draws"]):
            _answer(answer, [(ids, m[str(number)]) for ids, m in asked if str(number) in m], draw, keep)


def _answer(
    answer: Sampler, asked: list[tuple[list[int], str]], draw: Row, keep: Callable[[str, list[int], bool], None]
) -> None:
    """The answers of one number: (prompt, key) each."""
    if asked:
        answer([ids for ids, _ in asked], draw, lambda i, ids, whole: keep(asked[i][1], ids, whole))


if __name__ == "__main__":
    die_with_parent()
    child_main(sample)
