"""Recomputes the figures of the starter pairs' data card, and checks what the card promises.

Run it after a change of recipes/starter/pairs: `python scripts/pairs_card.py` prints the figures as Markdown
(recipes/starter/pairs/README.md holds them) and ends with 1 if a promise is broken.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

ROOT = Path(__file__).parent.parent
PAIRS = ROOT / "recipes" / "starter" / "pairs"
MODEL = ROOT / ".preftune" / "models" / "SmolLM2-135M-Instruct"
SPLITS = ("train", "test")
FIELDS = ("prompt", "chosen", "rejected")
MIN_ROWS = {"train": 320, "test": 80}
MIN_TOPICS, MIN_MULTI_TURN = 10, 1 / 8
MAX_MEAN_GAP, MAX_LENGTH_RULE, MAX_JACCARD = 0.10, 0.60, 0.4
TOKENS = range(20, 46)

Row = dict[str, Any]


def text(row: Row, field: str) -> str:
    """The text of all turns of one field; roles and the chat template do not count."""
    return "\n".join(message["content"] for message in row[field])


def trigrams(value: str) -> set[tuple[str, ...]]:
    """The 3-grams of a text's lower-case words."""
    words = "".join(c if c.isalnum() else " " for c in value.lower()).split()
    return set(zip(words, words[1:], words[2:], strict=False))


def length_rule(rows: list[Row]) -> float:
    """How often the longer answer is the chosen one, a tie counting one half."""
    lengths = [(row["tokens"]["chosen"], row["tokens"]["rejected"]) for row in rows]
    return statistics.fmean(1.0 if c > r else 0.5 if c == r else 0.0 for c, r in lengths)


def too_similar(rows: list[Row]) -> list[str]:
    """Two prompts, or two answers, of all splits together with a 3-gram Jaccard above the limit."""
    found = []
    for kind, fields in (("prompt", FIELDS[:1]), ("answer", FIELDS[1:])):
        grams = [(f"{row['id']} {f}", trigrams(text(row, f))) for row in rows for f in fields]
        for (a, left), (b, right) in itertools.combinations(grams, 2):
            shared = len(left & right)
            if shared and shared / (len(left) + len(right) - shared) > MAX_JACCARD:
                found.append(f"two {kind}s are too similar: {a}, {b}")
    return found


def broken_promises(splits: dict[str, list[Row]]) -> list[str]:
    """What the card promises and the files do not keep, a message each."""
    rows = [row for split in SPLITS for row in splits[split]]
    broken = [f"{s}: {len(splits[s])} pairs, promised {n}" for s, n in MIN_ROWS.items() if len(splits[s]) < n]
    for split in SPLITS:
        held = splits[split]
        if (topics := len({row["topic"] for row in held})) < MIN_TOPICS:
            broken.append(f"{split}: {topics} topics, promised {MIN_TOPICS}")
        if (share := statistics.fmean(len(row["prompt"]) > 1 for row in held)) < MIN_MULTI_TURN:
            broken.append(f"{split}: {share:.1%} multi-turn, promised {MIN_MULTI_TURN:.1%}")
        chosen, rejected = (statistics.fmean(row["tokens"][f] for row in held) for f in FIELDS[1:])
        if abs(chosen / rejected - 1) > MAX_MEAN_GAP:
            broken.append(f"{split}: mean tokens {chosen:.1f} chosen, {rejected:.1f} rejected: over 10 % apart")
        if max(rule := length_rule(held), 1 - rule) >= MAX_LENGTH_RULE:
            broken.append(f"{split}: length alone tells {max(rule, 1 - rule):.1%} of the pairs")
    outside = [f"{r['id']} {f}: {r['tokens'][f]} tokens" for r in rows for f in FIELDS if r["tokens"][f] not in TOKENS]
    broken += [f"outside of {TOKENS.start} to {TOKENS.stop - 1} tokens: {o}" for o in outside]
    copies = [t for t, n in Counter(text(row, f) for row in rows for f in FIELDS).items() if n > 1]
    broken += [f"the same text stands twice: {t!r}" for t in copies]
    prompts = {text(row, "prompt") for row in splits["train"]}
    broken += [f"{row['id']}: its prompt is in train" for row in splits["test"] if text(row, "prompt") in prompts]
    return broken + too_similar(rows)


def card(splits: dict[str, list[Row]]) -> str:
    """The figures as Markdown tables."""
    lines = ["| | train | test |", "|---|---|---|"]

    def line(label: str, values: list[str]) -> None:
        lines.append(f"| {label} | {' | '.join(values)} |")

    held = [splits[s] for s in SPLITS]
    line("pairs", [str(len(rows)) for rows in held])
    multi = [sum(len(row["prompt"]) > 1 for row in rows) for rows in held]
    line("multi-turn", [f"{n} ({n / len(rows):.1%})" for n, rows in zip(multi, held, strict=True)])
    means: dict[str, list[float]] = {}
    for field in FIELDS:
        tokens = [[row["tokens"][field] for row in rows] for rows in held]
        means[field] = [statistics.fmean(t) for t in tokens]
        line(
            f"tokens of {field}: mean (min to max)",
            [f"{statistics.fmean(t):.1f} ({min(t)} to {max(t)})" for t in tokens],
        )
    ratios = zip(means["chosen"], means["rejected"], strict=True)
    line("mean tokens, chosen / rejected", [f"{c / r:.3f}" for c, r in ratios])
    rules = [length_rule(rows) for rows in held]
    line("accuracy of “the longer answer is chosen”", [f"{rule:.1%}" for rule in rules])
    line("accuracy of “the shorter answer is chosen”", [f"{1 - rule:.1%}" for rule in rules])
    for name in ("topic", "flaw"):
        counts = [Counter(row[name] for row in rows) for rows in held]
        lines += ["", f"| {name} | train | test |", "|---|---|---|"]
        for value in sorted(counts[0] | counts[1]):
            line(value, [str(c[value]) for c in counts])
    return "\n".join(lines)


def main() -> int:
    """Reads, prints, checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, default=MODEL, help="folder with tokenizer.json")
    file = parser.parse_args().tokenizer / "tokenizer.json"
    if not file.is_file():
        sys.stderr.write(f"{file} is not there: `make demo` prepares the model, or name a folder with --tokenizer\n")
        return 1
    tokenizer = Tokenizer.from_file(str(file))
    splits = {s: [json.loads(x) for x in (PAIRS / f"{s}.jsonl").read_text().splitlines()] for s in SPLITS}
    for row in (row for rows in splits.values() for row in rows):
        row["tokens"] = {f: len(tokenizer.encode(text(row, f), add_special_tokens=False).ids) for f in FIELDS}
    sys.stdout.write(card(splits) + "\n")
    broken = broken_promises(splits)
    sys.stderr.writelines(f"broken promise: {b}\n" for b in broken)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
