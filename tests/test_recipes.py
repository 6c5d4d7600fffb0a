"""Every YAML under recipes/ goes through the code that reads it, and says the truth about itself."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.accelerate_configs import processes
from preftune.data.registry import known
from preftune.errors import UserError
from preftune.model_shape import known_shapes
from preftune.preflight import preflight
from preftune.reading import read
from preftune.recipe import load_recipe
from preftune.strict_yaml import load_yaml
from preftune.training_setup import Machine, trainer_arguments
from preftune.workspace import Workspace
from scripts.memory_tables import TABLE, processes_of, table

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "recipes/accelerate_configs").glob("*.yaml"))
RECIPES = sorted(set((ROOT / "recipes").rglob("*.yaml")) - set(CONFIGS))
STARTER = ROOT / "recipes/starter/config_starter.yaml"
SMOKE = ROOT / "recipes/smoke/config_smoke.yaml"
OWN_PAIRS = ROOT / "recipes/own-pairs/config_rule.yaml"
READY = (STARTER, SMOKE)  # with the embedded model and the project's own pairs
HERE = (*READY, OWN_PAIRS)  # with the embedded model
OTHERS = [path for path in RECIPES if path not in HERE]
README = (ROOT / "recipes/README.md").read_text()


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "recipes"))


every = pytest.mark.parametrize("path", RECIPES, ids=name)
on_the_hub = pytest.mark.parametrize("path", OTHERS, ids=name)


@pytest.mark.parametrize("path", READY, ids=name)
def test_what_needs_no_hub_passes_the_checks_before_a_run(path: Path, tmp_path: Path) -> None:
    """Model and data are here; those of the others are on the hub."""
    recipe, _, sources = preflight(path, {}, Workspace(ROOT, tmp_path))
    assert sources and recipe.notices == ()


def test_a_recipe_whose_pairs_are_not_built_says_how(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    with pytest.raises(UserError, match="not built yet") as told:
        preflight(OWN_PAIRS, {}, Workspace(tmp_path, tmp_path / ".preftune"))
    assert told.value.advice.startswith("preftune pairs ")


@every
def test_no_key_needs_a_translation(path: Path) -> None:
    found = read(load_yaml(path.read_text(), str(path)), path)
    assert found.problems == []
    assert [change for change in found.changes if change.kind != "kept"] == []


@every
def test_resolved_recipe_is_a_recipe_again(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    again = tmp_path / path.parent.name / "resolved.yaml"
    again.parent.mkdir()
    again.write_text(yaml.safe_dump(recipe.resolved()))
    assert load_recipe(again).resolved() == recipe.resolved()


@every
def test_every_value_carries_a_comment(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    bare = [line for line in lines if line.strip() and not line.rstrip().endswith(":") and " # " not in line]
    assert bare == []


@every
def test_trl_builds_its_configuration(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the number format, which this machine may not have."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl import DPOConfig, ModelConfig
    from trl.experimental.orpo import ORPOConfig

    recipe = load_recipe(path)
    training = {k: v for k, v in recipe.training.items() if k not in ("bf16", "fp16")}
    config: Any = ORPOConfig if recipe.method == "orpo" else DPOConfig
    built = config(**trainer_arguments(training, tmp_path, Machine(has_cuda=False, has_bf16=False)))
    assert (built.beta, built.learning_rate) == (recipe.training["beta"], recipe.training["learning_rate"])
    assert ModelConfig(**recipe.model).use_peft is recipe.model["use_peft"]


@every
def test_the_comment_on_the_effective_batch_is_true(path: Path) -> None:
    """Micro-batch x accumulation x devices; 16 to 64 but where two CPU cores train on few pairs."""
    training, devices = load_recipe(path).training, processes_of(path)
    factors = [training["per_device_train_batch_size"], training["gradient_accumulation_steps"], devices]
    total = factors[0] * factors[1] * factors[2]
    said = re.search(r"effective batch: (\d+) x (\d+) x (\d+) (?:GPUs?|process) = (\d+)", path.read_text())
    assert said and [int(n) for n in said.groups()] == [*factors, total]
    assert path in HERE or 16 <= total <= 64


@on_the_hub
def test_the_memory_table_is_what_the_plan_says(path: Path) -> None:
    found = TABLE.search(path.read_text())
    assert found and found.group() == table(path), "write it anew: python scripts/memory_tables.py"


@on_the_hub
def test_a_recipe_fits_where_it_says(path: Path) -> None:
    """QLoRA on a T4, the others on an A100 at the latest."""
    rows = dict(re.findall(r"#   (T4|A100|H100) .*? GiB +(yes|no)", table(path)))
    assert rows["T4" if path.stem.endswith("t4") else "A100"] == "yes"


@on_the_hub
def test_datasets_are_read_as_the_registry_says(path: Path) -> None:
    """The splits with preferences, the test splits there are, and the dataset's own name."""
    for entry in load_recipe(path).mixture.datasets:
        found = known(entry.id)
        assert found is not None and found.id == entry.id
        assert entry.split in found.dpo_splits
        assert (entry.test_split in found.test_splits) if found.test_splits else entry.test_split is None


@on_the_hub
def test_number_formats_suit_the_device(path: Path) -> None:
    """float16 on a T4, bfloat16 elsewhere; nothing that all weights would lose their steps in."""
    recipe = load_recipe(path)
    dtype, on_t4 = recipe.model["dtype"], path.stem.endswith("t4")
    assert bool(recipe.training.get("fp16")) is on_t4 and bool(recipe.training.get("bf16")) is not on_t4
    if recipe.model["use_peft"]:
        assert dtype == ("float16" if on_t4 else "bfloat16")
    else:
        assert dtype == "float32" or recipe.accelerate_config == "zero3"


@every
def test_the_readme_lists_it(path: Path) -> None:
    """With what is expected of it; without figures of a run that nobody made."""
    row = next(line for line in README.splitlines() if f"]({name(path)})" in line)
    assert (path in HERE) is ("not measured by us" not in row)


def test_output_folders_are_their_own() -> None:
    folders = [load_recipe(path).output_dir for path in RECIPES]
    assert len(set(folders)) == len(folders)


def test_the_models_can_be_planned_for_offline() -> None:
    assert {load_recipe(path).model_name for path in RECIPES} <= set(known_shapes())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_accelerate_reads_its_config(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_machines == (2 if path.stem == "multi_node" else 1)
    assert processes(path) >= 1
