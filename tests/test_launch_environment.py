"""What one process makes of what accelerate started: how many train, which of them are one too many."""

import os
from pathlib import Path
from typing import Any

import pytest

from preftune import accelerate_configs, launch_environment
from preftune.accelerate_configs import Launch
from preftune.errors import UserError
from preftune.launch_environment import settle

ROOT = Path(__file__).parent.parent
DDP = ["--config_file", str(ROOT / "recipes/accelerate_configs/ddp.yaml")]
FSDP = [f"--config_file={ROOT / 'recipes/accelerate_configs/fsdp.yaml'}"]
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process as torchrun makes it, on a machine with so many GPUs."""
    monkeypatch.setattr(os, "environ", os.environ.copy())  # settle writes there
    for name in (*NAMES, "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_CPU", "PREFTUNE_THREADS"):
        os.environ.pop(name, None)

    def go(gpus: int, started: int, rank: int = 0, machines: int = 1, **more: str) -> None:
        for module in (accelerate_configs, launch_environment):
            monkeypatch.setattr(module, "gpu_count", lambda: gpus)
        here = str(started // machines)
        values = (str(rank), str(rank), str(started), here, str(machines), "127.0.0.1", "29500")
        os.environ.update({**dict(zip(NAMES, values, strict=True)), **more})

    return go


def test_as_many_as_there_are_devices(start: Any) -> None:
    """The file's eight on two GPUs: two train, six end."""
    start(gpus=2, started=8, rank=1)
    launch = settle(DDP)
    assert launch is not None and (launch.processes, launch.device) == (2, "cuda")
    assert launch.notice == "2 GPU(s) here: as many processes, not 8"
    assert (os.environ["WORLD_SIZE"], os.environ["LOCAL_WORLD_SIZE"], os.environ["RANK"]) == ("2", "2", "1")
    start(gpus=2, started=8, rank=2)
    assert settle(DDP) is None


def test_without_a_gpu_one_process_and_it_is_told(start: Any) -> None:
    start(gpus=0, started=8)
    launch = settle(DDP)
    assert launch is not None and launch.identity == {"processes": 1, "device": "cpu", "sharding": None}
    assert launch.notice == "no GPU here: one process on the CPU, not 8 (--num_processes=8 asks for them)"
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"} & set(os.environ), "a plain process"
    start(gpus=0, started=8, rank=7)
    assert settle(DDP) is None


@pytest.mark.parametrize("option", ["--num_processes=2", "--num-processes", "--num_proc=2", "--nproc_per_node=2"])
def test_processes_on_the_cpu_that_were_asked_for(start: Any, option: str) -> None:
    start(gpus=0, started=2, rank=1)
    launch = settle([*DDP, option])
    assert launch is not None and launch.identity == {"processes": 2, "device": "cpu", "sharding": None}
    assert (launch.notice, os.environ["WORLD_SIZE"]) == ("", "2")


def test_one_process_on_a_machine_with_several_gpus(start: Any) -> None:
    start(gpus=8, started=1)
    launch = settle([*DDP, "--num_processes=1"])
    assert launch is not None and launch.identity == {"processes": 1, "device": "cuda", "sharding": None}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert "RANK" not in os.environ


def test_more_processes_than_gpus_cannot_be(start: Any) -> None:
    start(gpus=2, started=4)
    with pytest.raises(UserError, match="4 processes for 2 GPU") as e:
        settle([*DDP, "--num_processes=4"])
    assert e.value.advice == "--num_processes=2"


def test_fewer_than_the_machine_has(start: Any) -> None:
    start(gpus=16, started=8)
    assert (told := settle(DDP)) and told.notice == "8 of 16 GPUs are used: --num_processes=16 takes all"
    start(gpus=16, started=4)
    assert (asked := settle([*DDP, "--num_processes=4"])) and asked.notice == "", "as asked"


def test_two_machines(start: Any) -> None:
    start(gpus=8, started=16, rank=9, machines=2)
    launch = settle(DDP)
    assert launch is not None and (launch.processes, launch.machines) == (16, 2)


def test_sharding_is_the_file_s(start: Any) -> None:
    """So that the key is the one of a run that names the file."""
    start(gpus=4, started=8, ACCELERATE_USE_FSDP="true")
    launch = settle(FSDP)
    own = accelerate_configs.sharding(ROOT / "recipes/accelerate_configs/fsdp.yaml")
    assert launch is not None and launch.identity == {"processes": 4, "device": "cuda", "sharding": own}
    start(gpus=4, started=4, ACCELERATE_USE_FSDP="true")
    changed = settle([*FSDP, "--fsdp_offload_params=true"])
    assert changed is not None and changed.identity["sharding"] != own, "a changed setting is another launch"


def test_nothing_is_sharded_on_a_cpu(start: Any) -> None:
    start(gpus=0, started=8, ACCELERATE_USE_FSDP="true")
    assert (launch := settle(FSDP)) and launch.sharding is None
    assert "ACCELERATE_USE_FSDP" not in os.environ
    start(gpus=0, started=2, ACCELERATE_USE_FSDP="true")
    assert (launch := settle([*FSDP, "--num_processes=2"])) and launch.sharding is None
    assert launch.notice == "no GPU here: each process holds the whole model"
    assert "ACCELERATE_USE_FSDP" not in os.environ


def test_a_plain_python_process(start: Any) -> None:
    """`python scripts/run_dpo.py`: no launcher at all."""
    start(gpus=0, started=1)
    for name in NAMES:
        os.environ.pop(name)
    assert (launch := settle([])) and isinstance(launch, Launch) and launch.processes == 1
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
