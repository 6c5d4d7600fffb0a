"""Which errors are known by name: out of memory in all its forms, a full disk, and what is neither."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from preftune.checkpoints import MANIFEST
from preftune.errors import OutOfMemory, StepError, UserError
from preftune.faults import is_disk_full, is_out_of_memory, named

# As the libraries print them.
CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.74 GiB of which 1.06 GiB is free."
)
MEMORY = [
    CUDA,
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 "
    "bytes. Error code 12 (Cannot allocate memory)",
    "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.01 GB, max allowed: 9.07 GB).",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
]


@pytest.mark.parametrize("text", MEMORY)
def test_out_of_memory(text: str, tmp_path: Path) -> None:
    assert is_out_of_memory(RuntimeError(text))
    error = RuntimeError(text)
    error.add_note("after 12 of 50 steps")
    found = named(error, tmp_path)
    assert isinstance(found, OutOfMemory)
    assert found.error.startswith("ran out of memory after 12 of 50 steps: ") and "\n" not in found.error


def test_torch_s_own_errors() -> None:
    """Raised by torch itself, where torch is: in a child."""
    code = (
        "import torch; from preftune.faults import is_out_of_memory as oom\n"
        "try: torch.empty(10**15)\n"
        "except RuntimeError as e: assert oom(e), e\n"
        "else: raise SystemExit('it fitted')\n"
        "assert oom(torch.OutOfMemoryError('CUDA out of memory.'))\n"
        "assert not oom(RuntimeError('mat1 and mat2 shapes cannot be multiplied'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_where_it_came_from_counts() -> None:
    try:
        try:
            raise MemoryError
        except MemoryError as e:
            raise ValueError("could not collate the batch") from e
    except ValueError as e:
        assert is_out_of_memory(e)


@pytest.mark.parametrize(
    "error", [ValueError("the words out of memory in a text"), KeyError("out of memory"), OSError(2, "x")]
)
def test_words_alone_are_no_memory_error(error: Exception, tmp_path: Path) -> None:
    assert not is_out_of_memory(error)
    assert named(error, tmp_path) is None


def test_the_model_itself_does_not_fit(tmp_path: Path) -> None:
    """A smaller batch would not help: no ladder, the way out instead."""

    def from_pretrained() -> None:
        raise RuntimeError(CUDA)

    with pytest.raises(RuntimeError) as e:
        from_pretrained()
    found = named(e.value, tmp_path)
    assert isinstance(found, UserError) and "the model itself does not fit" in found.error
    assert "QLoRA" in found.advice


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "optimizer.pt"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_disk_full(error: Exception, tmp_path: Path) -> None:
    """The half-written checkpoint is deleted, the whole one stays."""
    for step in (3, 6):
        (tmp_path / f"checkpoints/checkpoint-{step}").mkdir(parents=True)
    (tmp_path / "checkpoints/checkpoint-3" / MANIFEST).write_text("{}")
    found = named(error, tmp_path)
    assert isinstance(found, StepError) and not isinstance(found, OutOfMemory)
    assert "the disk is full" in found.error and "same command again" in found.advice
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-3"]


def test_torch_s_writer_fails_for_other_reasons_too(tmp_path: Path) -> None:
    """It does not say why; here the disk has space."""
    assert not is_disk_full(
        RuntimeError("[enforce fail at inline_container.cc:862] . PytorchStreamWriter failed"), tmp_path
    )
