"""What a run leaves on Prefect's pages: tables of the data, the verdict, links; and the event that it is decided."""

from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.events import emit_event

from preftune import summary, tracking
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace

VERDICT_EVENT = "preftune.verdict"


def show_data(sources: list[StepResult], mixture: StepResult, lengths: StepResult) -> None:
    """The artifacts `data` (what was read, kept and dropped) and `mixture` (what is trained on)."""
    create_table_artifact(summary.data_table(sources), key="data", description="read, kept and dropped, by dataset")
    create_table_artifact(
        summary.mixture_table(mixture.info),
        key="mixture",
        description=summary.markdown(summary.mixture_line(mixture.info, lengths)),
    )


def show_verdict(workspace: Workspace, recipe: Recipe, info: dict[str, Any], runs: dict[str, str], report: str) -> str:
    """The artifacts `verdict`, `mlflow-compare` and `report`, and the event `preftune.verdict`.

    Args:
        workspace: Where the run stands.
        recipe: The resolved recipe.
        info: Of the verdict's step.
        runs: From `verdict_runs.record_both`.
        report: The path of report.html.

    Returns:
        The address of MLflow's compare page.
    """
    compare = tracking.compare_url(workspace, runs["experiment"], [runs["sft"], runs["policy"]])
    page = tracking.artifact_url(workspace, runs["experiment"], runs["policy"], "report.html")
    create_markdown_artifact(summary.verdict_markdown(info, workspace.display(Path(report))), key="verdict")
    create_link_artifact(compare, link_text="SFT against the policy in MLflow", key="mlflow-compare")
    create_link_artifact(page, link_text="The report in MLflow", key="report")
    emit_event(
        VERDICT_EVENT,
        resource={"prefect.resource.id": f"preftune.run.{runs['policy']}", "prefect.resource.name": recipe.name},
        payload={
            "outcome": info["outcome"],
            "reasons": info["reasons"],
            "recipe": recipe.name,
            "run_id": runs["policy"],
            "sft_run_id": runs["sft"],
            "report": report,
            "compare_url": compare,
        },
    )
    return compare
