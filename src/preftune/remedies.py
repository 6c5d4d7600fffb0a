"""What the guide advises when a run disappoints: not improving, too slow, or good but not yet good enough. No I/O."""

from preftune.advice import BETA, Line, value
from preftune.model_shape import ModelShape, known_shapes
from preftune.schema import Recipe


def not_improving(recipe: Recipe) -> list[Line]:
    """What to try when the policy is no better than the SFT model, in the guide's order."""
    found = float(value(recipe, "beta"))
    rate = float(value(recipe, "learning_rate"))
    lines = [
        ("dataset_mixture", "read pairs: `preftune audit RECIPE` shows them; is the chosen answer really better?"),
        ("model_name_or_path", "is the starting model an SFT model? A base model gains nothing from DPO"),
        ("learning_rate", f"lower learning_rate: {rate / 5:.0e} in place of {rate:g}"),
    ]
    if recipe.method == "dpo" and found < BETA[1]:
        lines.append(("beta", f"raise beta: {min(5 * found, BETA[1]):g} in place of {found:g}"))
    return [Line("not_improving", "note", key, text) for key, text in lines]


def too_slow(recipe: Recipe, shape: ModelShape | None, train_pairs: int, steps: int) -> list[Line]:
    """What makes a training shorter, with numbers where they are known.

    Args:
        recipe: The resolved recipe.
        shape: The starting model's, if it is known.
        train_pairs: Pairs to train on.
        steps: Optimizer steps.
    """
    pairs, fewer = max(train_pairs // 10, 1), max(steps // 10, 1)
    tenth = f"weight: 0.1 keeps {pairs:,} of {train_pairs:,} pairs: about {fewer:,} of {steps:,} steps"
    lines = [("dataset_mixture", tenth)]
    small = known_shapes()["HuggingFaceTB/SmolLM2-1.7B-Instruct"].parameters
    if shape and shape.parameters > 1.2 * small:
        times = shape.parameters / small
        lines.insert(
            0,
            (
                "model_name_or_path",
                f"SmolLM2-1.7B-Instruct has {times:.1f} times fewer parameters: as many times faster",
            ),
        )
    if recipe.method == "dpo" and not recipe.training.get("precompute_ref_log_probs"):
        text = "the reference runs in every step: a quarter of its time (measured on a CPU); true computes it once"
        lines.append(("precompute_ref_log_probs", text))
    if not recipe.model.get("use_peft"):
        text = (
            "LoRA or QLoRA in place of training all weights: less memory, so larger micro-batches; QLoRA's unpacking "
        )
        lines.append(("use_peft", text + "makes a step slower than LoRA's, so take it where LoRA does not fit"))
    return [Line("too_slow", "note", key, text) for key, text in lines]


def better_results(recipe: Recipe) -> list[Line]:
    """What may lift the result further."""
    now = float(value(recipe, "num_train_epochs"))
    lines = []
    if now < 2:
        text = f"num_train_epochs: 2 or 3 in place of {now:g}, with an eye on eval/loss"
        lines.append(("num_train_epochs", text))
    if len(recipe.mixture.datasets) == 1:
        lines.append(("dataset_mixture", "mix several preference datasets: recipes/helpful-harmless does"))
    lines.append(("model_name_or_path", "a larger, better SFT model to start from"))
    if recipe.method == "dpo":
        lines.append(("beta", "try several: 0.01, 0.05, 0.1, 0.3, 0.5 (recipes/beta-sweep)"))
    return [Line("better_results", "note", key, text) for key, text in lines]
