"""Faults that a child meets and that have a name: out of memory, and a disk that is full."""

import errno
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

from preftune.checkpoints import remove_torn
from preftune.errors import OutOfMemory, PreftuneError, StepError, UserError

# torch has several kinds of errors for it: CUDA's and MPS's allocators, the driver, the CPU's, cuBLAS's and cuDNN's.
_MEMORY = ("out of memory", "defaultcpuallocator", "cannot allocate memory", "status_alloc_failed", "std::bad_alloc")
_DISK = ("no space left on device", "disk quota exceeded", "(os error 28)")
# What torch.save says when its file cannot grow, whatever the reason.
_WRITER = ("pytorchstreamwriter failed", "enforce fail at inline_container", "unexpected pos")
_ALMOST_NOTHING = 16 * 2**20
# Functions that put the model itself into memory: there a smaller batch does not help.
_LOADING = {"from_pretrained", "_move_model_to_device"}


def speaks_of_memory(text: str) -> bool:
    """True for the messages of torch's allocators."""
    return any(words in text.lower() for words in _MEMORY)


def speaks_of_disk(text: str) -> bool:
    """True for the messages of a write without space."""
    return any(words in text.lower() for words in _DISK)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """True if the error, or one that it came from, is an allocation that failed."""
    return any(
        isinstance(e, MemoryError) or (isinstance(e, RuntimeError | OSError) and speaks_of_memory(str(e)))
        for e in _chain(error)
    )


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """True if the error, or one that it came from, is a write for which there was no space.

    Args:
        error: What was raised.
        folder: Where it was written: torch.save does not say why it failed, the disk does.
    """
    for e in _chain(error):
        text = str(e).lower()
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if speaks_of_disk(text):
            return True
        if any(words in text for words in _WRITER) and shutil.disk_usage(folder).free < _ALMOST_NOTHING:
            return True
    return False


def named(error: Exception, folder: Path) -> PreftuneError | None:
    """The error in our words; None if it is no fault that has a name.

    Args:
        error: What ended the child's work; its notes tell where.
        folder: The child's folder. If the disk is full, half-written checkpoints in it are deleted.
    """
    where = " ".join(getattr(error, "__notes__", []))
    said = str(error).strip().partition("\n")[0][:200]
    if is_out_of_memory(error):
        if _LOADING & {frame.name for frame in traceback.extract_tb(error.__traceback__)}:
            return UserError(
                f"the model itself does not fit into memory: {said}",
                "model_name_or_path",
                "use_peft with load_in_4bit (QLoRA), a smaller model, or a larger device",
            )
        return OutOfMemory(f"ran out of memory {where or 'before the first step'}: {said}", "", "")
    if is_disk_full(error, folder):
        remove_torn(folder / "checkpoints")
        return disk_full(f"writing failed {where}".rstrip(), folder)
    return None


def disk_full(what: str, where: Path) -> StepError:
    """The message."""
    return StepError(
        f"the disk is full: {what}",
        str(where),
        "free some space and run the same command again: it goes on from the newest whole checkpoint",
    )
