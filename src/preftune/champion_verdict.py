"""The challenger against the champion: the same measures, gate and damage bars as against the SFT model, with the
champion's evaluation in the SFT model's place; and what is decided from both verdicts."""

import time
from pathlib import Path
from typing import Any

from preftune import keys, store
from preftune.champion import Version, tag
from preftune.errors import UserError
from preftune.models import StartingModel
from preftune.policies import Policy, find_policy
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.summary import headline_rows
from preftune.workspace import Workspace

_COMPARED = ("reward_accuracy", "reward_margin", "win_rate", "lc_win_rate")


def make_champion_verdict(workspace: Workspace, key: str, recipe: Recipe, results: dict[str, Any]) -> StepResult:
    """Compares the challenger with the champion and decides.

    Args:
        workspace: Where the store stands.
        key: `keys.verdict_key` of these results.
        recipe: The resolved recipe.
        results: `baseline`: the champion's evaluation; `policy`, `train`: the challenger's; `judge` where one is set.

    Returns:
        Info: outcome, reasons, advice, metrics of `champion` and `challenger`.
    """

    def build(folder: Path) -> dict[str, Any]:
        from preftune.gate import CHAMPION
        from preftune.verdict import compare

        places = {name: result.folder(workspace) for name, result in results.items()}
        found = compare(
            places["baseline"],
            places["policy"],
            results["train"].info,
            keys.beta(recipe),
            recipe.gate,
            folder,
            judge=places.get("judge"),
            opponent=CHAMPION,
        )
        metrics = {"champion": found["metrics"]["sft"], "challenger": found["metrics"]["policy"]}
        return {k: found[k] for k in ("outcome", "reasons", "advice")} | {"metrics": metrics}

    return store.make(workspace, "champion", key, build)


def measurable(
    champion: Version, folder: Path, workspace: Workspace, model: StartingModel
) -> tuple[Policy | None, str | None]:
    """The champion as a policy that is measured beside the challenger; or None, and why it cannot be.

    Args:
        champion: The version.
        folder: Its files.
        workspace: For digests that are known already.
        model: The challenger's starting model.
    """
    who = f"the champion (version {champion.number})"
    try:
        policy = find_policy(str(folder), workspace, model)
    except UserError as e:
        return None, f"{who} cannot be measured: {e.error}"
    if policy.digest != champion.tags.get("policy"):
        return None, f"{who} cannot be measured: its files are not those that were registered"
    if policy.adapter and champion.tags.get("sft_weights") != model.weights:
        base = champion.tags.get("sft_model", "unknown")
        return None, f"{who} is an adapter on another starting model ({base}): it cannot be measured on this one"
    return policy, None


def decision(
    verdict: dict[str, Any],
    against: dict[str, Any] | None,
    champion: Version | None,
    challenger: Version,
    why_not: str | None = None,
) -> tuple[bool, str]:
    """Whether the challenger is promoted, and why (not).

    Args:
        verdict: Against the SFT model: outcome, reasons.
        against: Against the champion; None where there is none, or it could not be compared.
        champion: None where there is none.
        challenger: What was trained.
        why_not: Why it could not be compared.
    """
    if champion is not None and champion.number == challenger.number:  # by hand, or by a run that was killed then
        return True, "it is the champion already"
    if verdict["outcome"] != "promote":
        return False, f"against the SFT model: {verdict['outcome']}: {'; '.join(verdict['reasons'])}"
    if champion is None:
        return True, "better than the SFT model, and there is no champion yet"
    if champion.tags.get("policy") == challenger.tags["policy"]:
        return False, f"it is the very model of the champion (version {champion.number})"
    if against is None:
        return False, f"{why_not}; to promote it all the same: preftune promote RUN --anyway"
    reasons = "; ".join(against["reasons"])
    who = f"the champion (version {champion.number})"
    if against["outcome"] != "promote":
        return False, f"against {who}: {against['outcome']}: {reasons}"
    return True, f"better than the SFT model and than {who}: {reasons}"


def champion_markdown(against: dict[str, Any], champion: Version, challenger: Version) -> str:
    """The comparison, for the flow run's page."""
    lines = [f"## Version {challenger.number} against the champion (version {champion.number}): {against['outcome']}"]
    lines += ["", *(f"- {r}" for r in against["reasons"]), "", "| measure | champion | challenger |", "|---|---|---|"]
    both = {"sft": against["metrics"]["champion"], "policy": against["metrics"]["challenger"]}
    rows = [(label.replace("against SFT", "against the champion"), *values) for label, *values in headline_rows(both)]
    return "\n".join([*lines, *(f"| {label} | {a} | {b} |" for label, a, b in rows)])


def record_comparison(
    client: Any, workspace: Workspace, version: Version, over: Version, against: StepResult | None
) -> None:
    """Writes the comparison on the challenger's version and on its MLflow run: tags, the measures that compare as
    `vs_champion/…`, and verdict.json in `champion/`.

    Args:
        client: From `tracking.connect`.
        workspace: Where the comparison stands.
        version: The challenger.
        over: The champion.
        against: From `make_champion_verdict`; None if the two could not be compared.
    """
    from mlflow.entities import Metric, RunTag

    tags = {
        "champion_verdict": against.info["outcome"] if against else "not comparable",
        "compared_with": over.number,
        "champion_run": over.run_id,
    }
    tag(client, version, tags)
    found = against.info["metrics"]["challenger"] if against else {}
    names = [f"{name}{end}" for name in _COMPARED for end in ("", "_lo", "_hi")]
    now = int(time.time() * 1000)
    metrics = [Metric(f"vs_champion/{n}", found[n], now, 0) for n in names if found.get(n) is not None]
    client.log_batch(version.run_id, metrics=metrics, tags=[RunTag(f"preftune.{k}", v) for k, v in tags.items()])
    if against:
        client.log_artifact(version.run_id, str(against.folder(workspace) / "verdict.json"), "champion")
