"""The notebook: committed without outputs, and run from its first cell to its last on the real model."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import ROOT, child_env

PATH = ROOT / "notebooks" / "preftune_starter.ipynb"
SMALL = {
    "dataset_mixture.datasets.0.max_rows": 8,
    "gradient_accumulation_steps": 1,
    "warmup_steps": 0,  # of two steps none is for warming up
    "eval_strategy": "no",
    "evaluation.max_pairs": 12,
    "evaluation.max_prompts": 2,
    "evaluation.max_new_tokens": 12,
    "evaluation.tasks": [],
}


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(PATH, as_version=4)


def test_it_is_committed_without_outputs(notebook: Any) -> None:
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 5
    assert [cell.outputs for cell in cells] == [[]] * len(cells)
    assert [cell.execution_count for cell in cells] == [None] * len(cells)
    assert "widgets" not in notebook.metadata


def run(folder: Path, **parameters: Any) -> Any:
    """Runs the notebook with other parameters, in a folder of its own, by the interpreter of the tests."""
    from nbclient import NotebookClient

    notebook = nbformat.read(PATH, as_version=4)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    (given,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook.cells.insert(given + 1, nbformat.v4.new_code_cell(source))  # where papermill puts it
    notebook.cells.append(nbformat.v4.new_code_cell("print(sys.executable)"))
    (folder / "notebooks").mkdir()
    place = {"metadata": {"path": folder / "notebooks"}}
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources=place)
    client.execute(env=child_env(IPYTHONDIR=str(folder / "ipython"), PREFTUNE_THREADS="1"))
    return notebook


@pytest.mark.slow
def test_a_command_that_fails_stops_it(tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match="preftune check ended with exit code 2") as stop:
        run(tmp_path, OVERRIDES={"betta": 0.3})
    assert "did you mean beta?" in str(stop.value)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("notebook")
    return folder, run(folder, OVERRIDES=SMALL)


def printed(cell: Any) -> str:
    return "".join(out.text for out in cell.outputs if out.output_type == "stream")


def cell_with(notebook: Any, text: str) -> Any:
    (found,) = (cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two or three minutes, where nothing else runs
def test_it_runs_from_the_first_cell_to_the_last(executed: tuple[Path, Any]) -> None:
    folder, notebook = executed
    assert printed(notebook.cells[-1]).strip() == sys.executable
    verdict = json.loads((folder / "data/my-first-dpo/verdict.json").read_text())
    told = cell_with(notebook, "measures = {")
    assert printed(told).startswith(verdict["outcome"])
    assert f"{verdict['metrics']['policy']['reward_margin']:.3f}" in told.outputs[-1].data["text/html"]
    runs = cell_with(notebook, "MlflowClient").outputs[-1].data["text/plain"]
    assert "my-first-dpo dpo beta=0.1" in runs
    assert "SmolLM2-135M-Instruct sft" in runs
    charts = [out.data["image/svg+xml"] for out in cell_with(notebook, "SVG(").outputs if "data" in out]
    assert len(charts) >= 3
    assert all("<svg" in chart for chart in charts)
    answers = printed(cell_with(notebook, "def answer"))
    sft, dpo = answers.split("SFT: ")[1].split("DPO: ")
    assert len(sft.split()) > 5
    assert len(dpo.split()) > 5
