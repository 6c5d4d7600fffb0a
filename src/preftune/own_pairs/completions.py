"""Several answers of one model to each prompt: what is known is looked up, what is missing is made."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from preftune import accelerate_configs
from preftune.children import read_json_lines
from preftune.content_cache import ContentCache
from preftune.digest import json_digest
from preftune.errors import OutOfMemory, StepError, UserError
from preftune.judges.interface import Message
from preftune.model_process import one_process, run_model_child
from preftune.own_pairs import endpoint_completions
from preftune.own_pairs.sampling import seed_of
from preftune.packages import installed
from preftune.pairs_schema import LocalGenerator, OpenAIGenerator, Pairs
from preftune.workspace import Workspace

Row = dict[str, Any]
# Reasons that may have passed when the same is asked again.
MAY_PASS = frozenset({"timeout", "rate_limit", "server_error", "connection", "budget", "given_up", "bad_reply"})


def engine(generator: LocalGenerator) -> Literal["transformers", "vllm"]:
    """What makes the completions on this machine.

    Raises:
        UserError: If vLLM is asked for and not installed.
    """
    if generator.engine == "auto":
        return "vllm" if installed("vllm") and accelerate_configs.device() != "cpu" else "transformers"
    if generator.engine == "vllm" and not installed("vllm"):
        raise UserError(
            "engine: vllm needs the package vllm, which is not installed here",
            "pairs.generator.engine",
            "pip install vllm, or use engine: transformers",
        )
    return generator.engine


def completion_key(
    generator_identity: str,
    prompt: Sequence[Message],
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    number: int,
) -> str:
    """What a completion depends on; at temperature 0 neither chance nor number plays a part.

    Args:
        generator_identity: What the model's answers depend on: weights, template, dtype, engine.
        prompt: The conversation.
        temperature: Of this completion.
        top_p: Of all.
        max_new_tokens: Where it is cut.
        seed: The recipe's.
        number: Of this completion, from 0.
    """
    chance = {"top_p": top_p, "seed": seed, "number": number} if temperature else {}
    return json_digest(
        {
            "generator": generator_identity,
            "prompt": list(prompt),
            "temperature": float(temperature),
            "max_new_tokens": max_new_tokens,
            **chance,
        }
    )


def complete(
    prompts: list[Row],
    settings: Pairs,
    identity: str,
    job: Row,
    workspace: Workspace,
    log_key: str,
    tell: Callable[[str], None],
) -> tuple[list[Row], Row]:
    """All completions of all prompts. After a kill at any moment, what was finished is not made again.

    Args:
        prompts: Rows of prompts.jsonl.
        settings: The recipe's section.
        identity: What a local model's answers depend on, as in `completion_key`.
        job: For a local model: `folder` (where its process works), `dtype`, and `model_process.model_job`.
        workspace: For caches and logs.
        log_key: Part of the log's name.
        tell: Called with each line for the user.

    Returns:
        The rows of completions.jsonl, in the order of the prompts and then of their numbers; and counts: `made`,
        `cached`, `errors` by reason, `again` (how many are missing for reasons that may have passed when asked
        again), and for an endpoint `requests`, `prompt_tokens`, `completion_tokens`, `cost`, `stopped`, `seconds`.

    Raises:
        UserError: If the endpoint refuses key, model or request, or if no prompt can be answered.
        StepError: If the endpoint cannot be reached, if the model's process fails, or if no answer came.
    """
    with closing(ContentCache(workspace.home / "completions", "completions", tell)) as cache:
        if isinstance(settings.generator, OpenAIGenerator):
            replies, ledger = endpoint_completions.ask(prompts, settings, cache, tell)
            values = [{"text": r.text.strip(), "whole": r.whole, "tokens": None, "error": r.error} for r in replies]
            cached, took = ledger.cached, ledger.result()
        else:
            values, made = _by_local_model(prompts, settings, identity, job, workspace, cache, log_key, tell)
            cached, took = sum(v["error"] is None for v in values) - made, {}
    rows = _rows(prompts, settings, values)
    errors = Counter(r["error"] for r in rows if r["error"] is not None)
    _check_some(errors, len(rows))
    names = ("requests", "prompt_tokens", "completion_tokens", "cost", "stopped", "seconds")
    return rows, {
        "made": len(rows) - errors.total() - cached,
        "cached": cached,
        "errors": dict(sorted(errors.items())),
        "again": sum(n for reason, n in errors.items() if reason in MAY_PASS),
        **{n: took[n] for n in names if n in took},
    }


def _rows(prompts: list[Row], settings: Pairs, values: list[Row]) -> list[Row]:
    """Rows of completions.jsonl, from the values in the same order."""
    numbered = [(p["id"], n) for p in prompts for n in range(settings.completions)]
    return [
        {
            "id": row_id,
            "number": n,
            "text": "" if v["error"] else v["text"],
            "whole": v["whole"] and not v["error"],
            "tokens": v["tokens"],
            "temperature": settings.temperature(n),
            "error": v["error"],
        }
        for (row_id, n), v in zip(numbered, values, strict=True)
    ]


def _check_some(errors: Counter[str], total: int) -> None:
    """Refuses to go on without a single completion."""
    if not total or errors.total() < total:
        return
    counted = ", ".join(f"{n} × {reason}" for reason, n in errors.most_common())
    error, where = f"none of {total} completions came ({counted})", "pairs.generator"
    if MAY_PASS & set(errors):
        raise StepError(error, where, "run the same command again; if it stays so, look at the endpoint's own log")
    advice = {
        "too_long": "shorten the prompts, or lower pairs.max_new_tokens",
        "template": "the model's chat template refuses these prompts (a system message?): take others",
    }
    raise UserError(error, where, advice.get(errors.most_common(1)[0][0], "take other prompts, or another model"))


def _by_local_model(
    prompts: list[Row],
    settings: Pairs,
    identity: str,
    job: Row,
    workspace: Workspace,
    cache: ContentCache,
    log_key: str,
    tell: Callable[[str], None],
) -> tuple[list[Row], int]:
    """Each completion's value (text, whole, tokens, error), and how many were made now."""
    numbers = range(settings.completions)
    rest = settings.top_p, settings.max_new_tokens, settings.seed
    keys = [
        [completion_key(identity, p["prompt"], settings.temperature(n), *rest, n) for n in numbers] for p in prompts
    ]
    known = {key: {**v, "error": None} for each in keys for key in each if (v := cache.get(key)) is not None}
    missing: list[Row] = []
    wanted: set[str] = set()
    for prompt, each in zip(prompts, keys, strict=True):
        lacks: dict[int, str] = {}
        for number, key in enumerate(each):
            if key not in known and key not in wanted:
                wanted.add(key)
                lacks[number] = key
        if lacks:
            missing.append({"prompt": prompt["prompt"], "missing": lacks})
    made = _sample(missing, settings, job, workspace, log_key, tell) if missing else {}
    found = known | made
    return [found[key] for each in keys for key in each], sum(v["error"] is None for v in made.values())


def _sample(
    missing: list[Row], settings: Pairs, job: Row, workspace: Workspace, log_key: str, tell: Callable[[str], None]
) -> dict[str, Row]:
    """Has the model's process make what is missing, by key."""
    assert isinstance(settings.generator, LocalGenerator)
    folder = Path(job["folder"]) / "sampling"
    shutil.rmtree(folder, ignore_errors=True)  # of a try that was killed
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in missing))
    told = {
        **job,
        "folder": str(folder),
        "cache": str(workspace.home / "completions"),
        "engine": engine(settings.generator),
        "batch_size": settings.generator.batch_size,
        "draws": [
            {"temperature": settings.temperature(n), "seed": seed_of(settings.seed, n)}
            for n in range(settings.completions)
        ],
        "top_p": settings.top_p,
        "max_new_tokens": settings.max_new_tokens,
    }
    try:
        run_model_child(workspace, "preftune.own_pairs.sampling", told, log_key, one_process(workspace), tell)
    except OutOfMemory as e:
        raise OutOfMemory(e.error, e.where, "lower pairs.generator.batch_size, or pairs.max_new_tokens") from None
    made = {row.pop("key"): row for row in read_json_lines(folder / "made.jsonl")}
    shutil.rmtree(folder)
    return made
