"""The devices that a training is planned for: the guide's GPUs, and what is present. No torch."""

import functools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from preftune.accelerate_configs import gpu_count

GIB = 1024**3


@dataclass(frozen=True)
class Device:
    """A device that a model is trained on.

    Args:
        name: As people call it.
        memory: Bytes.
        kind: `cuda` or `cpu`.
        capability: CUDA compute capability; None on a CPU.
    """

    name: str
    memory: int
    kind: str = "cuda"
    capability: tuple[int, int] | None = None

    @property
    def has_bf16(self) -> bool:
        """bfloat16 in hardware: Ampere (compute capability 8.0) and newer; PyTorch emulates it on older ones."""
        return self.capability is not None and self.capability >= (8, 0)


def _mib(count: int) -> int:
    return count * 1024**2


# Memory as nvidia-smi reports it, capability as in NVIDIA's list (developer.nvidia.com/cuda-gpus).
T4 = Device("T4 16 GB", _mib(15360), capability=(7, 5))
A100 = Device("A100 40 GB", _mib(40960), capability=(8, 0))
H100 = Device("H100 80 GB", _mib(81559), capability=(9, 0))
GUIDE = (T4, A100, H100)


def parse_gpus(text: str) -> list[Device]:
    """The devices of `nvidia-smi --query-gpu=name,memory.total,compute_cap --format=csv,noheader,nounits`."""
    found = []
    for line in text.splitlines():
        name, _, rest = line.rpartition(",")[0].rpartition(",")[0], None, line.split(",")[-2:]
        if not name or not rest[0].strip().isdigit():
            continue
        major, _, minor = rest[1].strip().partition(".")
        capability = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
        found.append(Device(name.strip(), _mib(int(rest[0])), capability=capability))
    return found


def _ram() -> int:
    """This computer's memory, or less where a container may use only a part."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def cpu() -> Device:
    """This computer without its GPUs."""
    return Device("this computer's memory", _ram(), kind="cpu")


@functools.cache
def present() -> Device:
    """The device that a run here would train on: the GPU with the least memory of several, else the CPU."""
    if gpu_count():
        command = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if gpus := parse_gpus(done.stdout):
            return min(gpus, key=lambda gpu: gpu.memory)
    return cpu()
