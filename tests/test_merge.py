"""What a training leaves, loaded as a user loads it; the merged model computes what the adapter computes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE, write_pairs

from preftune.data.pairs import to_pair

OWN_TEMPLATE = TEMPLATE + "{# the recipe's own #}"
CHAT = [{"role": "user", "content": "What comes after 4 and 7?"}]
END, OTHER_END = 2, 0  # <|im_end|>, which answers end with; <|endoftext|>, all that the starting model's settings name


@pytest.fixture(scope="module")
def base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A starting model as they are published: its settings name another end token, and sampling without do_sample."""
    folder = tmp_path_factory.mktemp("base") / "tiny-instruct"
    shutil.copytree(tiny_model, folder)
    settings = {"eos_token_id": OTHER_END, "temperature": 0.3, "top_k": 20, "length_penalty": 0.7}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains for two steps; returns the folder with the result."""
    from preftune.training import train

    def run(**model: Any) -> Path:
        folder = tmp_path_factory.mktemp("training")
        write_pairs(folder / "raw.jsonl", 8, 5)
        rows = [json.loads(line) for line in (folder / "raw.jsonl").read_text().splitlines()]
        text = "".join(to_pair(r, "raw", str(i)).model_dump_json() + "\n" for i, r in enumerate(rows))
        (folder / "pairs.jsonl").write_text(text)
        training = {"learning_rate": 0.1, "per_device_train_batch_size": 4, "num_train_epochs": 1.0, "max_length": 128}
        training |= {"report_to": "none", "save_strategy": "steps", "save_steps": 1.0, "save_total_limit": 2}
        job = {
            "method": "dpo",
            "model_path": str(base),
            "revision": None,
            "chat_template": OWN_TEMPLATE,
            "threads": 1,
            "model": model,
        }
        job |= {"train": str(folder / "pairs.jsonl"), "test": "", "left_out": None, "eval_pairs": 1}
        job |= {"reference": str(folder / "reference")}
        train({**job, "folder": str(folder), "training": training, "fast_path": "auto", "micro_batch_tokens": None})
        return folder / "model"

    return run


@pytest.fixture(scope="module")
def adapter(trained: Callable[..., Path]) -> Path:
    return trained(use_peft=True, lora_r=4)


def merged_folder(base: Path, adapter: Path, folder: Path, dtype: str = "float32") -> Path:
    from preftune.merge import merge

    job = {"folder": str(folder), "model_path": str(base), "revision": None}
    merge({**job, "dtype": dtype, "adapter": str(adapter)})
    return folder / "model"


@pytest.fixture(scope="module")
def merged(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merged_folder(base, adapter, tmp_path_factory.mktemp("merged"))


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.arange(3, 40).reshape(1, -1)).logits


def load(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options)


def test_the_merged_model_computes_what_the_adapter_computes(base: Path, adapter: Path, merged: Path) -> None:
    from peft import PeftModel

    expected, before = logits(PeftModel.from_pretrained(load(base), str(adapter))), logits(load(base))
    assert (expected - before).abs().max() > 0.1, "two steps did nothing: this test would prove nothing"
    found = logits(load(merged))
    assert (found - expected).abs().max() < 1e-5
    assert not [p.name for p in merged.iterdir() if "adapter" in p.name]


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's, about just this
@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["q_proj", "embed_tokens"]])
def test_an_adapter_on_tied_embeddings(tiny_model: Path, tmp_path: Path, targets: list[str]) -> None:
    """The tiny model's embeddings are tied: merged into the shared weights, the other end would change, too."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoTokenizer

    torch.manual_seed(1)
    model: Any = get_peft_model(load(tiny_model), LoraConfig(target_modules=targets, init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "adapter")
    shutil.copy(tiny_model / "generation_config.json", tmp_path / "adapter")
    expected = logits(PeftModel.from_pretrained(load(tiny_model), str(tmp_path / "adapter")))
    found = logits(load(merged_folder(tiny_model, tmp_path / "adapter", tmp_path)))
    assert (found - expected).abs().max() < 1e-5


def test_the_dtype_is_the_recipe_s(base: Path, adapter: Path, merged: Path, tmp_path: Path) -> None:
    import torch

    half = load(merged_folder(base, adapter, tmp_path, "bfloat16"), dtype="auto")
    assert half.dtype == torch.bfloat16
    expected = logits(load(merged))
    assert (logits(half).float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("kind", ["adapter", "merged", "full"])
def test_what_a_user_loads(kind: str, adapter: Path, merged: Path, trained: Callable[..., Path]) -> None:
    """Plain transformers: weights in safetensors, the recipe's template, and answers that end where they should."""
    from transformers import GenerationConfig, pipeline

    folder = {"adapter": lambda: adapter, "merged": lambda: merged, "full": trained}[kind]()
    names = {p.name for p in folder.iterdir()}
    weights = "adapter_model.safetensors" if kind == "adapter" else "model.safetensors"
    assert {weights, "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names
    assert not {n for n in names if n.endswith((".bin", ".pt", ".pkl", ".md"))}
    assert (folder / "chat_template.jinja").read_text() == OWN_TEMPLATE
    settings = GenerationConfig.from_pretrained(folder)
    assert set(settings.eos_token_id) == {END, OTHER_END} and settings.pad_token_id == OTHER_END
    assert (settings.do_sample, settings.temperature) == (None, None), "greedy stays greedy"
    more = {"tokenizer": str(folder), "generation_config": settings} if kind == "adapter" else {}
    chat: Any = pipeline("text-generation", model=str(folder), **more)
    assert chat.tokenizer.chat_template == OWN_TEMPLATE
    answer = chat(CHAT, max_new_tokens=3)[0]["generated_text"][-1]
    assert answer["role"] == "assistant"
    if kind != "adapter":
        assert set(chat.model.generation_config.eos_token_id) == {END, OTHER_END}


def test_an_adapter_needs_its_tokenizer_and_settings_named(adapter: Path) -> None:
    """For an adapter's folder transformers takes those of the starting model, unless it is given others."""
    import torch
    from transformers import GenerationConfig, pipeline

    settings = GenerationConfig.from_pretrained(adapter)
    chat: Any = pipeline("text-generation", model=str(adapter))
    assert chat.tokenizer.chat_template == TEMPLATE and chat.model.generation_config.eos_token_id == OTHER_END
    prompt = chat.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ids = chat.model.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :].tolist()
    settings.eos_token_id = [OTHER_END, ids[-1]]
    chat = pipeline("text-generation", model=str(adapter), generation_config=settings)
    (found,) = chat(CHAT, max_new_tokens=20, do_sample=False, return_tensors=True)
    assert found["generated_token_ids"][prompt.shape[1] :] == ids[: ids.index(ids[-1]) + 1]


def test_no_file_names_a_folder_of_this_machine(base: Path, adapter: Path, merged: Path) -> None:
    """But for an adapter's pointer to its starting model."""
    for folder, known in ((merged, set()), (adapter, {"adapter_config.json"})):
        texts = [p for p in folder.iterdir() if p.suffix in (".json", ".jinja")]
        found = {p.name for p in texts if str(base.parent) in p.read_text() or str(folder.parent) in p.read_text()}
        assert found == known
