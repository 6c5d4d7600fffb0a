"""The merging child: starting model and trained adapter → one model that needs neither peft nor the starting model.

Started as `python -m preftune.merge JOB.json`, on the CPU. The adapter is merged into the weights as they are without
quantization, in the recipe's dtype: that is also what the evaluation measured.
"""

import shutil
from pathlib import Path
from typing import Any

from preftune.children import child_main, die_with_parent, tell


def _untie(model: Any) -> None:
    """Gives the output layer weights of its own where an adapter sits on one end of tied embeddings: merging into
    the shared ones would change the other end, too. peft then marks the model as untied."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    head: Any = model.get_output_embeddings()
    ends = model.get_input_embeddings(), head
    if model.config.tie_word_embeddings and any(isinstance(end, BaseTunerLayer) for end in ends):
        head = getattr(head, "base_layer", head)
        head.weight = torch.nn.Parameter(head.weight.detach().clone())


def merge(job: dict[str, Any]) -> None:
    """Merges an adapter into its starting model.

    Args:
        job: `folder` (where `model/` is written), `model_path`, `revision`, `dtype`, `adapter` (a folder, with the
            tokenizer and generation settings that the merged model gets).
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.trainer_utils import align_special_tokens

    torch.set_num_threads(
        1
    )  # products of rank r: more threads only wait for each other (on a busy machine, 9 x as long)
    folder, adapter = Path(job["folder"]) / "model", Path(job["adapter"])
    shutil.rmtree(folder, ignore_errors=True)  # of a try that was killed
    base: Any = AutoModelForCausalLM.from_pretrained(
        job["model_path"], dtype=job["dtype"], use_safetensors=True, revision=job["revision"] or "main"
    )
    tell(f"merging the adapter into the starting model ({str(base.dtype).removeprefix('torch.')})")
    model = PeftModel.from_pretrained(base, str(adapter))
    _untie(base)
    merged = model.merge_and_unload(safe_merge=True)
    merged.generation_config = GenerationConfig.from_pretrained(adapter)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    align_special_tokens(merged, tokenizer)  # as the trainer does with a model that is trained as a whole
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    die_with_parent()
    child_main(merge)
