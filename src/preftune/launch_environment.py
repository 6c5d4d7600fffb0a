"""What `accelerate launch` started, read by one of its processes: how many train, on what, spread how.

torch is not imported: a process that is one too many must end at once.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

from preftune import accelerate_configs, ranks
from preftune.accelerate_configs import Launch, gpu_count
from preftune.errors import UserError
from preftune.model_process import child_env


def launcher_options() -> list[str]:
    """What stood on the launcher's command line before the script."""
    import psutil

    try:
        line = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    return line[: line.index(sys.argv[0])] if sys.argv[0] in line else []


def _config_file(options: list[str]) -> Path | None:
    for i, option in enumerate(options):
        name, has_value, value = option.partition("=")
        if name in ("--config_file", "--config-file"):
            value = value if has_value else options[i + 1]
            return Path(value) if Path(value).is_file() else None
    return None


def _sharding(options: list[str], config: Path | None) -> dict[str, Any] | None:
    kind = next((k for k in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{k}", "").lower() == "true"), None)
    if kind is None:
        return None
    found = (accelerate_configs.sharding(config) if config else None) or {
        kind: {k: v for k, v in sorted(os.environ.items()) if k.startswith(("FSDP_", "ACCELERATE_DEEPSPEED_"))}
    }
    more = [o for o in options if re.match(r"--(use[-_])?(fsdp|deepspeed|zero|offload)", o)]
    return {**found, "options": more} if more else found


def settle(options: list[str]) -> Launch | None:
    """Reads what the launcher started, and makes the environment of this process that of a plain child.

    A configuration's number of processes is an upper limit, so that one file serves every machine: processes beyond
    the number of GPUs are not needed. Without a GPU it is one process; more only where the command line asks for them.

    Args:
        options: The launcher's.

    Returns:
        How the training is launched; None if this process is one too many.

    Raises:
        UserError: If more processes were asked for than there are GPUs.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    gpus, config = gpu_count(), _config_file(options)
    started, machines = ranks.world_size(), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(started)))
    asked = machines > 1 or any(re.match(r"--n(um|proc)[-_]p", o) for o in options)
    use, notice = started, ""
    if not gpus and started > 1 and not asked:
        use, notice = 1, f"no GPU here: one process on the CPU, not {started} (--num_processes={started} asks for them)"
    elif gpus and here > gpus and asked:
        raise UserError(
            f"{here} processes for {gpus} GPU(s): each needs one of its own",
            "accelerate launch",
            f"--num_processes={gpus * machines}",
        )
    elif gpus and here > gpus:
        use, notice = gpus, f"{gpus} GPU(s) here: as many processes, not {started}"
    elif not asked and 1 < started < gpus:
        notice = f"{started} of {gpus} GPUs are used: --num_processes={gpus} takes all"
    if ranks.rank() >= use:
        return None
    if not gpus and any([os.environ.pop(name, None) for name in ranks.SHARDING]):
        notice = notice or "no GPU here: each process holds the whole model"
    sharding = _sharding(options, config)
    launch = Launch(config or Path(), use, "cuda" if gpus else "cpu", sharding, machines, notice)
    if use == 1 and sharding is None:
        ranks.be_alone()
    elif use < started:
        ranks.shrink(use)
    os.environ.update(child_env(launch))
    return launch
