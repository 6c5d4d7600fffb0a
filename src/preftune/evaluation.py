"""The evaluation child: one model (the SFT baseline, or the policy) measured on held-out pairs and prompts.

Started as `accelerate launch … --module preftune.evaluation JOB.json`. It writes numbers per pair and per
answer; what compares two models is computed from these, in `verdict.py`.
"""

from preftune.children import die_with_parent

die_with_parent()

import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from preftune.children import child_main, tell
from preftune.errors import UserError


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


def _progress(what: str) -> Any:
    began, told = time.monotonic(), [0.0]

    def show(done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - told[0] > 10:
            told[0] = now
            tell(f"{what}: {done}/{total} ({now - began:.0f} s)")

    return show


def _load(job: dict[str, Any]) -> tuple[Any, Any, Any]:
    """(tokenizer, the model to measure, a context in which it is the SFT model — or None if it is another one)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"revision": job["revision"]} if job["revision"] else {}
    tokenizer = AutoTokenizer.from_pretrained(job["model_path"], **source)
    if job["chat_template"]:
        tokenizer.chat_template = job["chat_template"]
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    options = {"dtype": job["dtype"], "use_safetensors": True}
    policy = job.get("policy")
    if policy and not (Path(policy) / "adapter_config.json").exists():
        model = AutoModelForCausalLM.from_pretrained(policy, **options)
        as_sft = None
    else:
        model = AutoModelForCausalLM.from_pretrained(job["model_path"], **options, **source)
        as_sft = nullcontext
        if policy:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, policy)
            as_sft = model.disable_adapter
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"  # transformers wraps `to` in an untyped decorator
    model = model.to(device).eval()
    return tokenizer, model, as_sft


def _eos_ids(tokenizer: Any, model: Any) -> set[int]:
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return {i for i in ids if i is not None}


def evaluate(job: dict[str, Any]) -> None:
    """Measures a model; see the files it writes.

    Args:
        job: `folder`, `model_path`, `revision`, `chat_template`, `dtype`, `policy` (a folder, for the policy
            only), `pairs` (file), `left_out` (as in training.py), `evaluation` (the recipe's section), `max_length`,
            `truncation`, `threads`.

    Writes:
        pairs.jsonl: row_id, group_id, source, chosen_logp, rejected_logp (nats, summed over the answer's
            tokens), chosen_tokens, rejected_tokens.
        answers.jsonl: row_id, prompt, text, tokens, stopped, seq_rep_4, logp (under the measured model),
            sft_logp (under SFT).
        lm_eval.jsonl, lm_eval.json: lm-eval's samples and results on the same pairs.
    """
    import torch

    torch.set_num_threads(job["threads"])
    from preftune.data.mixture import load_pairs
    from preftune.scoring import answer_logps, generate, seq_rep
    from preftune.tokens import tokenize_pair, tokenize_prompt

    folder, settings, max_length = Path(job["folder"]), job["evaluation"], job["max_length"]
    timing: dict[str, float] = {}
    began = time.monotonic()
    tokenizer, model, as_sft = _load(job)
    timing["load"] = time.monotonic() - began
    pairs = load_pairs(Path(job["pairs"]))[: settings["max_pairs"]]
    tokens = [tokenize_pair(tokenizer, p) for p in pairs]
    gone = None if job["left_out"] is None else set(job["left_out"]["test"])
    fits = [
        i not in gone if gone is not None else len(t.prompt) < max_length or job["truncation"] == "keep_end"
        for i, t in enumerate(tokens)
    ]
    if not any(fits):
        raise UserError(
            f"no held-out pair can be measured at max_length={max_length}: its prompt alone fills it",
            "max_length",
            "raise max_length",
        )
    if left_out := [p.row_id for p, ok in zip(pairs, fits, strict=True) if not ok]:
        tell(f"{len(left_out)} of {len(pairs)} held-out pairs left out: nothing of them is left at {max_length=}")
    _write(folder / "dropped.jsonl", [{"row_id": r} for r in left_out])
    pairs = [p for p, ok in zip(pairs, fits, strict=True) if ok]
    tokens = [t for t, ok in zip(tokens, fits, strict=True) if ok]

    began = time.monotonic()
    batch = settings["batch_size"]
    both = [(t.prompt, t.chosen) for t in tokens] + [(t.prompt, t.rejected) for t in tokens]
    scores = answer_logps(
        model,
        both,
        max_length=max_length,
        batch_size=batch * 2,
        keep_end=job["truncation"] == "keep_end",
        progress=_progress("scored answers"),
    )
    if (bad := sum(not math.isfinite(s[0]) for s in scores)) and job.get("policy") is None:
        raise UserError(
            f"the starting model gives {bad} of {len(scores)} held-out answers a likelihood that is not finite",
            job["model_path"],
            "its weights are damaged, or its dtype is too narrow: copy it again, or set dtype: float32",
        )
    _write(
        folder / "pairs.jsonl",
        [
            {
                "row_id": p.row_id,
                "group_id": p.group_id,
                "source": p.source,
                "chosen_logp": c[0],
                "rejected_logp": r[0],
                "chosen_tokens": c[1],
                "rejected_tokens": r[1],
            }
            for p, c, r in zip(pairs, scores[: len(pairs)], scores[len(pairs) :], strict=True)
        ],
    )
    timing["pairs"] = time.monotonic() - began

    began = time.monotonic()
    first_of = {p.group_id: p for p in reversed(pairs)}  # each prompt once
    asked = [p for p in pairs if first_of[p.group_id] is p][: settings["max_prompts"]]
    prompts = [tokenize_prompt(tokenizer, p.prompt) for p in asked]
    answers = generate(
        model,
        prompts,
        eos_ids=_eos_ids(tokenizer, model),
        pad_id=tokenizer.pad_token_id,
        max_new_tokens=settings["max_new_tokens"],
        batch_size=batch * 4,
        progress=_progress("answered prompts"),
    )
    timing["answers"] = time.monotonic() - began

    began = time.monotonic()
    limit = max(len(p) + len(a.ids) for p, a in zip(prompts, answers, strict=True))
    sequences = [(p, a.ids) for p, a in zip(prompts, answers, strict=True)]
    own = answer_logps(model, sequences, max_length=limit, batch_size=batch * 2)
    if job.get("policy") is None:
        sft = own
    elif as_sft is not None:
        with as_sft():
            sft = answer_logps(model, sequences, max_length=limit, batch_size=batch * 2)
    else:
        from transformers import AutoModelForCausalLM

        source = {"revision": job["revision"]} if job["revision"] else {}
        reference = AutoModelForCausalLM.from_pretrained(
            job["model_path"], dtype=job["dtype"], use_safetensors=True, **source
        )
        reference = reference.to(model.device).eval()
        sft = answer_logps(reference, sequences, max_length=limit, batch_size=batch * 2)
        del reference
    timing["answer_logps"] = time.monotonic() - began
    _write(
        folder / "answers.jsonl",
        [
            {
                "row_id": p.row_id,
                "prompt": p.prompt,
                "text": tokenizer.decode(a.ids, skip_special_tokens=True).strip(),
                "chosen": p.chosen[-1]["content"],
                "tokens": len(a.ids) - a.stopped,
                "stopped": a.stopped,
                "seq_rep_4": seq_rep(a.ids),
                "logp": o[0],
                "sft_logp": s[0],
                "logp_tokens": o[1],
            }
            for p, a, o, s in zip(asked, answers, own, sft, strict=True)
        ],
    )
    if "preference_pairs" in settings["tasks"]:
        began = time.monotonic()
        from preftune.lm_eval_pairs import run_pairs_task

        tell("lm-eval: preference_pairs")
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        run_pairs_task(base, tokenizer, pairs[: settings["task_limit"]], folder, batch_size=batch * 2)
        timing["lm_eval"] = time.monotonic() - began
    (folder / "timing.json").write_text(json.dumps({k: round(v, 1) for k, v in timing.items()}))


if __name__ == "__main__":
    child_main(evaluate)
