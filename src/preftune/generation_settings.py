"""The generation settings that a tuned model is saved with: where its answers end, and nothing that cannot be saved."""

from typing import Any

# transformers ignores these unless it samples or searches beams, and then refuses to save them.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty")


def make_saveable(config: Any) -> None:
    """Unsets what a starting model's settings name but do not use, in place: answers stay the same.

    transformers loads such settings with a warning. As soon as an id in them is changed (its trainer adds the
    tokenizer's end token) it refuses to save them, and with them the model: at the first checkpoint, or after the
    last step.

    Args:
        config: A `transformers.GenerationConfig`.
    """
    unused = (_SAMPLING if config.do_sample is not True else ()) + (_BEAMS if (config.num_beams or 1) == 1 else ())
    for name in unused:
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
