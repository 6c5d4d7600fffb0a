"""The dataset that `preftune pairs` writes: pairs on two sides, what was left out, a card, where it all came from."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from preftune.errors import UserError
from preftune.markdown import code, markdown
from preftune.own_pairs.selection import REASONS, Choice, length_accuracy
from preftune.pairs_schema import Pairs

Row = dict[str, Any]
SIDES = ("train", "test")
_ADVICE = {
    "tie": "the scorer tells no answers apart: use another one, or more answers at higher temperatures",
    "below_margin": "lower pairs.margin, or have more answers at higher temperatures",
    "no_answer": "have more answers, or raise pairs.temperatures",
    "all_cut": "raise pairs.max_new_tokens",
    "no_score": "about/left_out.jsonl has the answers; correct the scorer",
    "length_balance": "the scorer prefers by length: use another one, or raise pairs.max_length_accuracy",
    "model_better": "the scorer finds the dataset's answers no better than the model's: look at both",
}


def split(pairs: Sequence[Choice], test_size: float, seed: int) -> dict[str, list[Choice]]:
    """Both sides; all pairs of one prompt are on the same one. The draw depends on the prompts and the seed alone.

    Args:
        pairs: The pairs.
        test_size: Share of the prompts that is held out; 0: none.
        seed: Of the draw.

    Raises:
        UserError: If a side would be empty.
    """
    groups = {p.prompt["group"] for p in pairs}
    count = max(1, round(test_size * len(groups))) if test_size else 0
    if count >= len(groups):
        raise UserError(
            f"pairs of {len(groups)} prompt(s) are too few to hold any out",
            "pairs.test_size",
            "take more prompts, or set test_size: 0",
        )
    drawn = sorted(groups, key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())[:count]
    held = frozenset(drawn)
    return {
        "train": [p for p in pairs if p.prompt["group"] not in held],
        "test": [p for p in pairs if p.prompt["group"] in held],
    }


def pair_rows(pairs: Iterable[Choice]) -> list[Row]:
    """The lines of train.jsonl or test.jsonl: id, topic (where the prompt has one), prompt, chosen, rejected (all three
    messages), score_chosen, score_rejected (where there are scores)."""
    rows, seen = [], Counter[str]()
    for pair in pairs:
        prompt = pair.prompt
        seen[prompt["id"]] += 1
        row = {"id": f"{prompt['id']}#{seen[prompt['id']]}"}
        if prompt.get("topic"):
            row["topic"] = prompt["topic"]
        row["prompt"] = prompt["prompt"]
        row |= {side: [{"role": "assistant", "content": getattr(pair, side).text}] for side in ("chosen", "rejected")}
        if pair.chosen.score is not None:
            row |= {f"score_{side}": getattr(pair, side).score for side in ("chosen", "rejected")}
        rows.append(row)
    return rows


def statistics(pairs: Sequence[Choice]) -> dict[str, float]:
    """Lengths (characters, means), how often chosen is longer, how much length tells, the mean gap of the scores."""
    count = len(pairs)
    return {
        "chosen_length": sum(len(p.chosen.text) for p in pairs) / count,
        "rejected_length": sum(len(p.rejected.text) for p in pairs) / count,
        "chosen_longer": sum(p.longer == 1 for p in pairs) / count,
        "length_accuracy": length_accuracy(pairs),
        "gap": sum(p.gap for p in pairs) / count,
    }


def no_pairs(left: Counter[str], prompts: int) -> UserError:
    """What to say when nothing came out."""
    why = "; ".join(f"{n} × {REASONS[reason]}" for reason, n in left.most_common())
    return UserError(f"no pair came out of {prompts} prompts: {why}", "pairs", _ADVICE[left.most_common(1)[0][0]])


def write_dataset(
    folder: Path,
    pairs: Sequence[Choice],
    left: Sequence[Row],
    settings: Pairs,
    told: dict[str, Any],
) -> dict[str, Any]:
    """Writes train.jsonl, test.jsonl, README.md, about/left_out.jsonl and about/lineage.json.

    Args:
        folder: Where they go.
        pairs: From `selection.choose`.
        left: What was left out on the way, all steps: rows with `step` and `reason`.
        settings: The recipe's section.
        told: What card and lineage tell: name, prompts (name, digest, read), generator, scorer (texts), scores
            (scores.json), lineage (object), left_words (step → reason → words).

    Returns:
        Counts: train, test, left_out (step → reason → n), and `statistics`.

    Raises:
        UserError: If there is no pair, or too few.
    """
    counts: dict[str, Counter[str]] = {}
    for row in left:
        counts.setdefault(row["step"], Counter())[row["reason"]] += 1
    if not pairs:
        raise no_pairs(counts["selection"], told["prompts"]["kept"])
    sides = split(pairs, settings.test_size, settings.seed)
    (folder / "about").mkdir(parents=True, exist_ok=True)
    for side in (s for s in SIDES if sides[s]):
        _write(folder / f"{side}.jsonl", pair_rows(sides[side]))
    _write(folder / "about" / "left_out.jsonl", left)
    info = {
        **{side: len(sides[side]) for side in SIDES},
        "left_out": {step: dict(reasons.most_common()) for step, reasons in counts.items()},
        **statistics(pairs),
    }
    (folder / "about" / "lineage.json").write_text(json.dumps({**told["lineage"], "counts": info}, indent=1))
    (folder / "README.md").write_text(card(info, settings, told), encoding="utf-8")
    return info


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def card(info: dict[str, Any], settings: Pairs, told: dict[str, Any]) -> str:
    """The dataset's README.md; what recipe and dataset name is escaped.

    Args:
        info: As `write_dataset` returns it.
        settings: The recipe's section.
        told: As of `write_dataset`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=False,  # Markdown: every text goes through a filter
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"markdown": markdown, "code": code}
    text = environment.get_template("pairs_card.md.j2").render(info=info, settings=settings, **told)
    return text.encode("utf-8", "replace").decode()
