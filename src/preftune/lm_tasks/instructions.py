"""Instructions whose following a program can check, with IFEval's four metrics (arXiv 2311.07911, section 2.2)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from preftune.lm_tasks.rules import follows, follows_loosely


def process_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """lm-eval's hook: the metrics of one document.

    Args:
        document: With its `rules`, as JSON.
        results: The model's one answer.

    Returns:
        Prompt level: whether all rules are followed; instruction level: a list, for each rule.
    """
    rules = json.loads(document["rules"])
    strict = [follows(results[0], r) for r in rules]
    loose = [follows_loosely(results[0], r) for r in rules]
    return {
        "prompt_level_strict_acc": float(all(strict)),
        "inst_level_strict_acc": strict,
        "prompt_level_loose_acc": float(all(loose)),
        "inst_level_loose_acc": loose,
    }


def share_of_rules(documents: Sequence[Sequence[bool]]) -> float:
    """lm-eval's hook: the share of followed rules, of all documents together."""
    found = [followed for document in documents for followed in document]
    return sum(found) / len(found)
