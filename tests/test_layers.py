"""Imports run one way: flows → tasks → preftune; and nothing heavy is imported where it is not needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {"src/preftune": {"preftune"}, "tasks": {"preftune", "tasks"}, "flows": {"preftune", "tasks", "flows"}}
LIBRARIES = {"datasets", "evaluate", "prefect", "torch", "transformers", "trl", "peft", "mlflow", "pandas", "lm_eval"}


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_no_arrow_points_back(layer: str) -> None:
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files
    for path in files:
        ours = imported(path) & {"preftune", "tasks", "flows"}
        assert ours <= MAY_IMPORT[layer], f"{path.name} imports {ours - MAY_IMPORT[layer]}"


def test_the_logic_never_imports_prefect() -> None:
    assert not [p.name for p in (ROOT / "src/preftune").rglob("*.py") if "prefect" in imported(p)]


def test_no_module_is_named_like_a_library() -> None:
    names = {p.stem for layer in ("flows", "tasks") for p in (ROOT / layer).glob("*.py")}
    assert not names & LIBRARIES


def test_flow_and_command_line_import_nothing_heavy() -> None:
    """What the flow's process imports before the first step runs."""
    code = "import sys, flows.cli, flows.retrain, preftune.preflight, preftune.plan; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "transformers", "trl", "peft", "mlflow", "lm_eval", "datasets", "pandas", "scipy"}
