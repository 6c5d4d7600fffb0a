"""Launch configurations: accelerate takes the shipped files as they are; the machine and the recipe choose one."""

import importlib.util
from pathlib import Path

import pytest

from preftune import accelerate_configs
from preftune.accelerate_configs import NAMES, Launch, choose, launch, processes, sharding
from preftune.errors import UserError
from preftune.workspace import Workspace

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "recipes/accelerate_configs"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, tmp_path / ".preftune")


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(accelerate_configs, "gpu_count", lambda: count)


def config(folder: Path, text: str) -> str:
    (folder / "own.yaml").write_text(text)
    return "own.yaml"


def test_there_is_a_file_for_each_name() -> None:
    assert {p.stem for p in SHIPPED.glob("*.yaml")} == {*NAMES, "multi_node"}


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_s_launcher_takes_the_file(name: str) -> None:
    """Through the launcher's own checks, as for `accelerate launch --config_file FILE script`."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    path = SHIPPED / f"{name}.yaml"
    found = load_config_from_file(str(path))
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "scripts/run_dpo.py", "r.yaml"])
    settled, _, _ = _validate_launch_command(arguments)
    assert settled.mixed_precision == "no", "the recipe decides"
    assert settled.num_processes == (8 if name in ("ddp", "fsdp", "zero3") else 1)
    assert (settled.multi_gpu, settled.use_fsdp, settled.use_deepspeed) == (
        name == "ddp",
        name == "fsdp",
        name == "zero3",
    )
    assert bool(found.use_cpu) == (name == "cpu")
    if name == "fsdp":
        assert (settled.fsdp_version, settled.fsdp_state_dict_type) == (2, "FULL_STATE_DICT")
    if name == "zero3":
        assert (settled.zero_stage, settled.zero3_save_16bit_model) == (3, True)


def test_the_file_for_several_machines_is_taken_and_a_run_does_not_start_them(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    path = SHIPPED / "multi_node.yaml"
    words = [
        "--config_file",
        str(path),
        "--machine_rank=1",
        "--main_process_ip=10.1.2.3",
        "scripts/run_dpo.py",
        "r.yaml",
    ]
    settled, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert (settled.multi_gpu, settled.num_machines, settled.num_processes) == (True, 2, 16)
    assert (settled.machine_rank, settled.main_process_ip, settled.main_process_port) == (1, "10.1.2.3", 29500)
    gpus(monkeypatch, 8)
    found = launch(workspace, "multi_node")
    assert (found.machines, found.processes) == (2, 16), "model_process.run_model_child refuses such a launch"


@pytest.mark.parametrize(
    ("count", "name", "started", "device"),
    [
        (0, "cpu.yaml", 1, "cpu"),
        (1, "single_gpu.yaml", 1, "cuda"),
        (2, "ddp.yaml", 2, "cuda"),
        (8, "ddp.yaml", 8, "cuda"),
    ],
)
def test_the_machine_chooses(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, count: int, name: str, started: int, device: str
) -> None:
    gpus(monkeypatch, count)
    found = launch(workspace, None)
    assert (found.config.name, found.processes, found.device, found.sharding) == (name, started, device, None)
    assert found.notice == ""


def test_more_gpus_than_the_file_asks_for_is_told(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 16)
    assert launch(workspace, "ddp").processes == 8
    assert launch(workspace, "ddp").notice == "8 of 16 GPUs are used (ddp.yaml asks for no more)"


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero3", "single_gpu"])
def test_a_configuration_for_gpus_means_one_process_without_them(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    gpus(monkeypatch, 0)
    found = launch(workspace, name)
    assert found.identity == launch(workspace, "cpu").identity == {"processes": 1, "device": "cpu", "sharding": None}
    assert found.config.name == "cpu.yaml"
    assert found.notice == f"no GPU here: one process on the CPU ({name}.yaml asks for GPUs)"


def test_one_process_is_the_same_under_every_name(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    assert launch(workspace, "ddp").identity == launch(workspace, "single_gpu").identity
    assert launch(workspace, "ddp").config.name == "single_gpu.yaml", "no process group for one"
    assert launch(workspace, "fsdp").config.name == "fsdp.yaml"


def test_sharding_counts_and_its_file_s_name_does_not(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 4)
    own = config(
        workspace.project, (SHIPPED / "fsdp.yaml").read_text().replace('mixed_precision: "no"', "mixed_precision: bf16")
    )
    assert launch(workspace, own).identity == launch(workspace, "fsdp").identity
    assert launch(workspace, "fsdp").identity != launch(workspace, "ddp").identity
    assert sharding(SHIPPED / "fsdp.yaml")["FSDP"]["fsdp_version"] == 2  # pyright: ignore[reportOptionalSubscript]


def test_several_processes_on_the_cpu(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    own = config(workspace.project, "distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n")
    found = launch(workspace, own)
    assert found.identity == {"processes": 2, "device": "cpu", "sharding": None}
    assert [found.threads(cores) for cores in (1, 2, 8)] == [1, 1, 4]


def test_the_cpu_on_a_machine_with_gpus(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are hidden, so that no library takes one."""
    gpus(monkeypatch, 2)
    assert launch(workspace, "cpu").device == "cpu"
    assert launch(workspace, "cpu").environment() == {"CUDA_VISIBLE_DEVICES": ""}


def test_one_process_sees_one_gpu(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would spread a single process over all it sees (DataParallel)."""
    gpus(monkeypatch, 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    assert launch(workspace, "single_gpu").environment() == {"CUDA_VISIBLE_DEVICES": "3"}
    assert launch(workspace, "ddp").environment() == {}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert launch(workspace, "single_gpu").environment() == {"CUDA_VISIBLE_DEVICES": "0"}


def test_gpu_ids_limit_the_processes(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 8)
    own = config(workspace.project, 'distributed_type: MULTI_GPU\ngpu_ids: "0,1,2"\nnum_processes: 8\n')
    assert processes(workspace.project / own) == 3


def test_several_machines(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen processes are sixteen processes, on whichever machine the run that takes them up is."""
    gpus(monkeypatch, 1)
    own = config(workspace.project, "distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 16\n")
    found = launch(workspace, own)
    assert (found.processes, found.machines, found.device) == (16, 2, "cuda")
    assert found.threads(cores=64) == 8


def test_deepspeed_is_asked_for_by_name(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 8)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find(name))
    with pytest.raises(UserError, match="needs DeepSpeed, which is not installed") as e:
        choose(workspace, "zero3")
    assert "accelerate_config: fsdp" in e.value.advice


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "not an accelerate configuration"),
        ("distributed_type: MULTI_GPU\nnum_processes: none", "num_processes: 'none' is not a number"),
        ("distributed_type: MULTI_GPU\nnum_processes: 0", "num_processes: 0 is not a number"),
        ("num_machines: true", "num_machines: True is not a number"),
    ],
)
def test_a_broken_file_is_told(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    gpus(monkeypatch, 2)
    with pytest.raises(UserError, match=message):
        launch(workspace, config(workspace.project, text))


def test_an_unknown_name_lists_the_known_ones(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="no accelerate configuration 'zero9'") as e:
        choose(workspace, "zero9")
    assert "cpu, single_gpu, ddp, fsdp, zero3" in e.value.advice


def test_the_project_s_own_file_wins(workspace: Workspace) -> None:
    own = workspace.project / "recipes/accelerate_configs/ddp.yaml"
    own.parent.mkdir(parents=True)
    own.write_text((SHIPPED / "ddp.yaml").read_text())
    assert choose(workspace, "ddp") == own


def test_identity_says_nothing_of_names() -> None:
    one, other = Launch(Path("a.yaml"), 2, "cuda"), Launch(Path("b.yaml"), 2, "cuda", notice="x")
    assert one.identity == other.identity
