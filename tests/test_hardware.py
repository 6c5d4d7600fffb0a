"""Devices: the guide's GPUs, what nvidia-smi says, and this machine's."""

from pathlib import Path

import pytest

from preftune import hardware
from preftune.hardware import A100, GIB, H100, T4, Device, parse_gpus


def test_bfloat16_begins_with_ampere() -> None:
    assert (T4.has_bf16, A100.has_bf16, H100.has_bf16) == (False, True, True)
    assert not Device("a CPU", 8 * GIB, kind="cpu").has_bf16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tesla T4, 15360, 7.5\n", [("Tesla T4", 15360, (7, 5))]),
        ("NVIDIA H200, 143771, 9.0\nNVIDIA H200, 143771, 9.0\n", [("NVIDIA H200", 143771, (9, 0))] * 2),
        ("NVIDIA A100-SXM4-40GB, 40960, 8.0", [("NVIDIA A100-SXM4-40GB", 40960, (8, 0))]),
        ("GPU, odd name, 1024, 12.0", [("GPU, odd name", 1024, (12, 0))]),
        # a MIG slice or an old driver: no figures
        ("NVIDIA H100, [N/A], 9.0", []),
        ("Tesla K80, 11441, [N/A]", [("Tesla K80", 11441, None)]),
        ("", []),
        ("No devices were found", []),
    ],
)
def test_what_nvidia_smi_prints(text: str, expected: list[tuple[str, int, tuple[int, int] | None]]) -> None:
    assert [(d.name, d.memory // 1024**2, d.capability) for d in parse_gpus(text)] == expected


def test_the_device_present_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """This computer's memory, and not one byte more than a container may use."""
    monkeypatch.setattr(hardware, "gpu_count", lambda: 0)
    hardware.present.cache_clear()
    found = hardware.present()
    hardware.present.cache_clear()
    assert found.kind == "cpu"
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert GIB < found.memory <= total
