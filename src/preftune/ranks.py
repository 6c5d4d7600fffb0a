"""Several processes that train one model: what they must agree on, and how the first hands the others their job.

Imports torch where it is used: a process that is one too many must end at once.
"""

import atexit
import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
_JOB = "preftune/job"
_WEEK = timedelta(days=7)  # checking and mixing the data takes as long as it takes
SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
# What torchrun tells its workers. Without them a process is a plain one, with no process group.
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def take_launcher_settings() -> dict[str, str]:
    """Takes mixed precision and compilation out of the environment that `accelerate launch` made: the recipe decides
    both, so that it means the same whichever file it is launched with.

    transformers takes the launcher's mixed precision where the recipe says neither bf16 nor fp16.

    Returns:
        What the launcher's file asked for: `mixed_precision` and `dynamo_backend`, without the ones that say no.
    """
    names = {"mixed_precision": "ACCELERATE_MIXED_PRECISION", "dynamo_backend": "ACCELERATE_DYNAMO_BACKEND"}
    found = {key: os.environ.pop(name, "no").lower() for key, name in names.items()}
    return {key: value for key, value in found.items() if value != "no"}


def shrink(processes: int) -> None:
    """Lets the first so many processes of this machine go on as if no others had been started."""
    os.environ["WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = str(processes)


def be_alone() -> None:
    """Makes a launch of one process a plain process: no process group, no sharding."""
    for name in (*_TORCHRUN, *SHARDING):
        os.environ.pop(name, None)


_store: Any = None  # kept: where no launcher hosts the store, the first process does, as long as this lives


def _connect() -> Any:
    global _store
    if _store is None:
        from torch.distributed import rendezvous

        _store, _, _ = next(rendezvous("env://", timeout=_WEEK))
    return _store


def hand_over(job: dict[str, Any] | None) -> None:
    """The first process gives the others their job; None: there is nothing to do."""
    if world_size() > 1:
        _connect().set(_JOB, json.dumps(job))


def wait_for_job() -> dict[str, Any] | None:
    """What the first process hands over.

    Not a collective operation, which would time out while the first process prepares the data; the launcher ends
    this process if that one fails.
    """
    return json.loads(_connect().get(_JOB))


def _together() -> bool:
    import torch.distributed

    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def any_rank(mine: bool) -> bool:
    """Whether it is true for any process. All of them must ask, at the same point."""
    if not _together():
        return mine
    import torch
    from accelerate import PartialState

    flag = torch.tensor(int(mine), device=PartialState().device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def from_first(find: Callable[[], T]) -> T:
    """What the first process finds, for all; the others do not look."""
    if not _together():
        return find()
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [find() if rank() == 0 else None]
    return broadcast_object_list(found)[0]


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if _together():
        import torch.distributed

        torch.distributed.barrier()


def leave() -> None:
    """Ends the process group, where there is one: torch warns of one that is left to the interpreter's end."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """Ends this process. One of several skips the interpreter's own clean-up: once in some thirty launches a process
    never came to its end after all was done (why was not found), and its launcher waited with it; after a failure the
    other processes would, too."""
    if world_size() > 1:
        if code == 0:
            atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
