"""The evaluation child: one model (the SFT baseline, or the policy) measured on held-out pairs, prompts and tasks.

Started as `accelerate launch … --module preftune.evaluation JOB.json`. It writes numbers per pair, answer and
document; what compares two models is computed from these, in `verdict.py`.
"""

from preftune.children import die_with_parent

die_with_parent()

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from preftune.children import child_main, read_json_lines, tell
from preftune.data.pairs import Message, Pair
from preftune.digest import json_digest
from preftune.errors import UserError
from preftune.progress import count_up

Row = dict[str, Any]
WHITE_SPACE = 2  # tokens that a chat template may end a prompt with, and that lm-eval counts to the answer


def _write(path: Path, rows: list[Row]) -> None:
    """JSON lines; NaN becomes null, which JSON does not know otherwise."""
    path.write_text("".join(json.dumps(_finite(r), ensure_ascii=False) + "\n" for r in rows))


def _finite(row: Row) -> Row:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


@contextmanager
def _part(timing: dict[str, float], name: str, doing: str) -> Iterator[None]:
    """Counts a part's seconds; an error that ends it says where it was."""
    began = time.monotonic()
    try:
        yield
    except Exception as e:
        e.add_note(f"while {doing}")
        raise
    timing[name] = round(time.monotonic() - began, 1)


def _tokens(job: Row, tokenizer: Any, pairs: list[Pair]) -> dict[int, Any]:
    """By the pair's number: the tokens of those of which something is left at max_length."""
    from preftune.data.token_file import read_tokens
    from preftune.tokens import CHECKED, TokenizedPair, is_of, tokenize_pair

    if job["left_out"] is None:
        tokens = ((i, tokenize_pair(tokenizer, p)) for i, p in enumerate(pairs))
        keep_end = job["truncation"] == "keep_end"
        return {i: t for i, t in tokens if keep_end or len(t.prompt) < job["max_length"]}
    gone = set(job["left_out"]["test"])
    kept = [i for i in range(len(pairs)) if i not in gone]
    file = Path(job["tokens"]["test"])
    if is_of(tokenizer, file, [pairs[i] for i in kept[:CHECKED]]):
        found = [TokenizedPair(*ids) for ids in read_tokens(file, len(kept))]
    else:
        found = [tokenize_pair(tokenizer, pairs[i]) for i in kept]
    return dict(zip(kept, found, strict=True))


def _held_out(job: Row, tokenizer: Any) -> tuple[list[Pair], list[Any]]:
    """The pairs of which something is left at max_length, and their tokens; the others are written down."""
    from preftune.data.mixture import load_pairs

    max_length = job["max_length"]
    pairs = load_pairs(Path(job["pairs"]))[: job["evaluation"]["max_pairs"]]
    tokens = _tokens(job, tokenizer, pairs)
    if not tokens:
        raise UserError(
            f"no held-out pair can be measured at max_length={max_length}: its prompt alone fills it",
            "max_length",
            "raise max_length",
        )
    if left_out := [p.row_id for i, p in enumerate(pairs) if i not in tokens]:
        tell(f"{len(left_out)} of {len(pairs)} held-out pairs left out: nothing of them is left at {max_length=}")
    _write(Path(job["folder"]) / "dropped.jsonl", [{"row_id": r} for r in left_out])
    return [pairs[i] for i in tokens], list(tokens.values())


def _pair_rows(pairs: list[Pair], scores: list[Any]) -> list[Row]:
    return [
        {
            "row_id": p.row_id,
            "group_id": p.group_id,
            "source": p.source,
            "topic": p.topic,
            "digest": json_digest([p.prompt, p.chosen, p.rejected]),  # are the pairs of two runs the same?
            "chosen_logp": c.logp,
            "rejected_logp": r.logp,
            "chosen_tokens": c.tokens,
            "rejected_tokens": r.tokens,
        }
        for p, c, r in zip(pairs, scores[: len(pairs)], scores[len(pairs) :], strict=True)
    ]


def _answer_rows(
    asked: list[Pair], answers: list[Any], texts: list[str], own: list[float], sft: list[float]
) -> list[Row]:
    from preftune.scoring import seq_rep

    return [
        {
            "row_id": p.row_id,
            "group_id": p.group_id,
            "source": p.source,
            "topic": p.topic,
            "prompt": p.prompt,
            "text": text,
            "chosen": p.chosen[-1]["content"],
            "tokens": len(a.ids) - a.stopped,
            "stopped": a.stopped,
            "seq_rep_4": seq_rep(a.ids),
            "logp": o,
            "sft_logp": s,
            "logp_tokens": len(a.ids),
        }
        for p, a, text, o, s in zip(asked, answers, texts, own, sft, strict=True)
    ]


def _suite_rows(questions: list[Row], ask: Any) -> list[Row]:
    """Asks the suites' questions, turn by turn: a later turn follows the model's own answer to the one before.

    Args:
        questions: Lines of the job's file: `suite`, `id`, `category`, `turns` (each the messages that it adds),
            `reference`, `generator`.
        ask: From (conversations, what the progress line says) to (answers, texts).
    """
    turns: list[list[Row]] = [[] for _ in questions]
    for turn in range(max((len(q["turns"]) for q in questions), default=0)):
        open_ones = [i for i, q in enumerate(questions) if len(q["turns"]) > turn]
        talks: list[list[Message]] = []
        for i in open_ones:
            said = turns[i][-1] if turn else None
            before = [*said["prompt"], {"role": "assistant", "content": said["text"]}] if said else []
            talks.append([*before, *questions[i]["turns"][turn]])
        answers, texts = ask(talks, f"answered questions (turn {turn + 1})" if turn else "answered questions")
        for i, talk, a, text in zip(open_ones, talks, answers, texts, strict=True):
            turns[i].append({"prompt": talk, "text": text, "tokens": len(a.ids) - a.stopped, "stopped": a.stopped})
    names = ("suite", "id", "category", "reference", "generator")
    return [{**{n: q[n] for n in names}, "turns": t} for q, t in zip(questions, turns, strict=True)]


def _run_tasks(model: Any, tokenizer: Any, pairs: list[Pair], scored: list[Any], settings: Row, folder: Path) -> None:
    """Runs the lm-eval tasks; `scored`: (prompt, answer, score) of what need not be computed again."""
    from preftune.capability import run_tasks

    lm = None
    if settings["tasks"]:
        from preftune.lm_in_memory import ModelInMemory

        lm = ModelInMemory(  # pyright: ignore[reportAbstractUsage] - lm-eval registers HFLM untyped
            model,
            tokenizer,
            batch_size=settings["batch_size"],
            scored=scored,
            progress=lambda what: count_up(f"lm-eval: {what}", tell),
        )
    run_tasks(lm, tokenizer, pairs, settings, folder, tell)


def evaluate(job: Row) -> None:
    """Measures a model; see the files it writes.

    Args:
        job: `folder`, `model_path`, `revision`, `chat_template`, `dtype`, `policy` (a folder with a model or an
            adapter, for the policy only), `pairs` (file), `suites` (file of questions, or null), `left_out` and
            `tokens` (as in training.py), `evaluation` (the recipe's section), `max_length`, `truncation`, `threads`.

    Writes:
        pairs.jsonl: row_id, group_id, source, topic, digest (of the texts), chosen_logp, rejected_logp (nats, summed
            over the answer's tokens), chosen_tokens, rejected_tokens.
        answers.jsonl: row_id, group_id, source, topic, prompt, text, chosen, tokens, stopped, seq_rep_4, logp (under
            the measured model), sft_logp (under SFT), logp_tokens; of each prompt group once.
        suite_answers.jsonl: suite, id, category, turns (prompt, text, tokens, stopped), reference, generator.
        lm_eval.jsonl, lm_eval.json: lm-eval's samples and results.
        timing.json: seconds by part.
    """
    import torch

    torch.set_num_threads(job["threads"])
    from preftune.generation import Decoding, generate
    from preftune.loading import as_sft, end_ids, load_model, load_tokenizer
    from preftune.scoring import answer_logps
    from preftune.tokens import tokenize_prompt

    folder, settings = Path(job["folder"]), job["evaluation"]
    batch, timing = settings["batch_size"], dict[str, float]()
    with _part(timing, "load", "loading the model"):
        tokenizer = load_tokenizer(job)
        pairs, tokens = _held_out(job, tokenizer)
        model = load_model(job, tokenizer)

    with _part(timing, "pairs", "scoring the held-out pairs"):
        sides = [(t.prompt, t.chosen) for t in tokens] + [(t.prompt, t.rejected) for t in tokens]
        scores = answer_logps(
            model,
            sides,
            max_length=job["max_length"],
            batch_size=batch * 2,
            keep_end=job["truncation"] == "keep_end",
            lead=WHITE_SPACE,
            progress=count_up("scored answers", tell),
        )
    if (bad := sum(not math.isfinite(s.logp) for s in scores)) and job.get("policy") is None:
        raise UserError(
            f"the starting model gives {bad} of {len(scores)} held-out answers a likelihood that is not finite",
            job["model_path"],
            "its weights are damaged, or its dtype is too narrow: copy it again, or set dtype: float32",
        )
    _write(folder / "pairs.jsonl", _pair_rows(pairs, scores))

    def ask(talks: list[list[Message]], what: str) -> tuple[list[Any], list[str]]:
        answers = generate(
            model,
            [tokenize_prompt(tokenizer, talk) for talk in talks],
            Decoding(**{name: settings[name] for name in ("max_new_tokens", "temperature", "top_p", "seed")}),
            eos_ids=end_ids(tokenizer, model),
            batch_size=batch,
            progress=count_up(what, tell),
        )
        return answers, [tokenizer.decode(a.ids, skip_special_tokens=True).strip() for a in answers]

    with _part(timing, "answers", "answering the held-out prompts"):
        first_of = {p.group_id: p for p in reversed(pairs)}  # each prompt once
        asked = [p for p in pairs if first_of[p.group_id] is p][: settings["max_prompts"]]
        answers, texts = ask([p.prompt for p in asked], "answered prompts")

    with _part(timing, "suites", "answering the suites' questions"):
        questions = read_json_lines(Path(job["suites"])) if job.get("suites") else []
        _write(folder / "suite_answers.jsonl", _suite_rows(questions, ask))

    with _part(timing, "tasks", "running lm-eval"):
        uncut = [(p, a, s) for (p, a), s in zip(sides, scores, strict=True) if len(p) + len(a) <= job["max_length"]]
        _run_tasks(model, tokenizer, pairs, uncut, settings, folder)

    written = [(tokenize_prompt(tokenizer, p.prompt), a.ids) for p, a in zip(asked, answers, strict=True)]

    def score(scored: Any, what: str) -> list[float]:
        limit = max(len(prompt) + len(answer) for prompt, answer in written)
        told = count_up(what, tell)
        found = answer_logps(scored, written, max_length=limit, batch_size=batch * 2, progress=told)
        return [s.logp for s in found]

    own = [a.logp for a in answers]
    with _part(timing, "answer_logps", "scoring the answers"):
        if model.dtype != torch.float32:
            # In 16 bits an answer is likelier to who wrote it by the rounding alone: 0.003 nats a token of SmolLM2's.
            # Both sides of the KL are then scored in the same way.
            own = score(model, "scored its answers")
        sft = own
        if job.get("policy"):
            with as_sft(job, model) as sft_model:
                sft = score(sft_model, "scored its answers under SFT")
    _write(folder / "answers.jsonl", _answer_rows(asked, answers, texts, own, sft))
    (folder / "timing.json").write_text(json.dumps(timing))


if __name__ == "__main__":
    child_main(evaluate)
