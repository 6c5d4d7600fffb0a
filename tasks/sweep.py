"""Tasks on a whole sweep: its MLflow run, its folder."""

from pathlib import Path
from typing import Any

from prefect import task

from preftune import sweep_runs, tracking
from preftune.schema import Recipe
from preftune.sweep_schema import Sweep
from preftune.sweep_study import Trial
from preftune.workspace import Workspace


@task(name="open-sweep", retries=3, retry_delay_seconds=[5, 20, 60])
def open_sweep(workspace: Workspace, recipe: Recipe, sweep: Sweep, key: str) -> dict[str, str]:
    """Makes or finds the sweep's MLflow run; returns {experiment, run}."""
    with tracking.mlflow_errors(workspace):
        return sweep_runs.open_sweep(workspace, recipe, sweep, key)


@task(name="publish-sweep", retries=1)
def publish_sweep(
    workspace: Workspace,
    recipe: Recipe,
    overrides: dict[str, Any],
    sweep: Sweep,
    measure: str,
    trials: list[Trial],
    baseline: str,
    target: Path,
) -> dict[str, Any]:
    """Ranks the trials and fills the sweep's folder."""
    from preftune import sweep_page  # matplotlib

    return sweep_page.publish_sweep(workspace, recipe, overrides, sweep, measure, trials, baseline, target)


@task(name="track-sweep", retries=3, retry_delay_seconds=[5, 20, 60])
def record_sweep(
    workspace: Workspace,
    runs: dict[str, str],
    sweep: Sweep,
    rows: list[dict[str, Any]],
    files: dict[str, str],
    links: dict[str, str],
) -> None:
    """Completes the sweep's MLflow run."""
    with tracking.mlflow_errors(workspace):
        sweep_runs.record_sweep(workspace, runs, sweep, rows, files, links)
