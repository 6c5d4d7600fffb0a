"""The steps' keys: every module that a step's result is made by is in its key; what a judge's key depends on."""

import ast
from pathlib import Path

import pytest

from preftune import keys
from preftune.own_pairs import keys as own_keys

ROOT = Path(keys.__file__).parent
# They decide where things are, how they are found, read or told, not what comes out.
NOT_IN_KEYS = {
    *("children", "errors", "progress", "workspace", "store", "digest", "faults", "section", "schema", "models"),
    *("evaluation_schema", "keys", "strict_yaml", "embedded", "accelerate_configs", "summary", "known_keys"),
    *("packages", "plan", "live_metrics", "sqlite_file", "content_cache", "judges/find"),
    *("pairs_schema", "model_process", "own_pairs/keys"),
    *("data/check_list", "data/registry", "data/languages", "data/labels", "data/hub"),
    *("data/pairs", "data/mixture"),  # pairs are read as they were written
}


def imported(path: Path) -> set[str]:
    """Our own modules that a file imports, anywhere in it, as `data/pairs`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        for name in names:
            place = name.removeprefix("preftune.").replace(".", "/")
            if name.startswith("preftune.") and (ROOT / f"{place}.py").is_file():
                found.add(place)
    return found


def behind(module: str) -> set[str]:
    """The module and all of ours that it imports, directly or not; those that are in no key lead no further."""
    found, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in found and name not in NOT_IN_KEYS:
            found.add(name)
            todo += imported(ROOT / f"{name}.py")
    return found


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("evaluation", keys._EVALUATION_CODE),
        ("training", keys._TRAINING_CODE),
        ("verdict", keys._VERDICT_CODE),
        ("report", (*keys._REPORT_CODE, *keys._VERDICT_CODE)),
        ("judges/run", keys.JUDGE_CODE),
        ("audit/page", keys._AUDIT_CODE),
        ("audit/collect", keys._AUDIT_CODE),
        ("own_pairs/prompts", own_keys.PROMPTS_CODE),
        ("own_pairs/completions", own_keys.COMPLETIONS_CODE),
        ("own_pairs/sampling", own_keys.COMPLETIONS_CODE),
        ("own_pairs/scores", own_keys.SCORES_CODE),
        ("own_pairs/rule_scores", own_keys.SCORES_CODE),
        ("own_pairs/labels", own_keys.SCORES_CODE),
        ("own_pairs/selection", own_keys.DATASET_CODE),
        ("own_pairs/dataset", own_keys.DATASET_CODE),
    ],
)
def test_all_code_behind_a_step_is_in_its_key(module: str, code: tuple[str, ...]) -> None:
    assert behind(module) <= set(code), f"not in the key: {sorted(behind(module) - set(code))}"


def test_every_name_is_a_file() -> None:
    names = {**vars(keys), **{f"own_{n}": v for n, v in vars(own_keys).items()}}
    lists = [v for n, v in names.items() if n.endswith("_CODE") or n in ("_TEMPLATES", "_LOCAL_TASKS")]
    for name in (n for code in lists for n in code):
        assert (ROOT / name).is_file() or (ROOT / f"{name}.py").is_file(), name
