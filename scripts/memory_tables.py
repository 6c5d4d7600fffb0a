"""The memory table in the head of each shipped recipe: `python scripts/memory_tables.py` writes them anew.

A test compares what stands there with what the plan says today.
"""

import re
import sys
from pathlib import Path

from preftune.accelerate_configs import choose
from preftune.advice import gib
from preftune.hardware import GUIDE
from preftune.memory_plan import plan_memory
from preftune.model_shape import known_shapes
from preftune.plan import sharding_of
from preftune.recipe import load_recipe
from preftune.strict_yaml import load_yaml
from preftune.workspace import find_workspace

RECIPES = Path(__file__).parents[1] / "recipes"
# The mark where a new recipe's table goes, or the table that stands there.
TABLE = re.compile(r"^# MEMORY\n|^# Memory of a training step.*\n(?:#   .*\n)+", re.MULTILINE)


def processes_of(path: Path) -> int:
    """The devices that a recipe is written for: its accelerate configuration's number of processes, else one."""
    recipe = load_recipe(path)
    if recipe.accelerate_config is None:
        return 1
    config = choose(find_workspace(recipe=path), recipe.accelerate_config)
    return int(load_yaml(config.read_text(), str(config))["num_processes"])


def table(path: Path) -> str:
    """The comment: what a step needs on the guide's devices, and the largest micro-batch that fits."""
    recipe, processes = load_recipe(path), processes_of(path)
    config = choose(find_workspace(recipe=path), recipe.accelerate_config) if recipe.accelerate_config else None
    shape = known_shapes()[recipe.model_name]
    each = f" on each of {processes} devices" if processes > 1 else ""
    lines = [
        f"# Memory of a training step{each}, estimated (measured by nobody yet); `preftune check` plans for yours."
    ]
    lines.append("#   device       needed     fits   largest micro-batch   without gradient_checkpointing")
    for device in GUIDE:
        plan = plan_memory(recipe, shape, device, processes, sharding_of(config) if config else None)
        most = plan["largest_micro_batch"]
        with_it, without = (str(most[k] or "none") for k in ("with_checkpointing", "without_checkpointing"))
        fits = "yes" if plan["fits"] else "no"
        lines.append(f"#   {device.name:<12} {gib(plan['needed']):<10} {fits:<6} {with_it:<21} {without}")
    return "\n".join(lines) + "\n"


def main() -> int:
    for path in sorted(set(RECIPES.rglob("*.yaml")) - set((RECIPES / "accelerate_configs").glob("*"))):
        text, count = TABLE.subn(lambda _, p=path: table(p), path.read_text())
        if count:
            path.write_text(text)
        sys.stdout.write(f"{path.relative_to(RECIPES)}: {'written' if count else 'has no table'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
