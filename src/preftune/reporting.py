"""`report_to`: TensorBoard's and Weights & Biases' files in the training's folder, and no question while it runs."""

import netrc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from preftune.errors import UserError
from preftune.packages import installed

_NOT_SENT = ("offline", "disabled", "dryrun")
RUNS = "runs"  # in the training's folder, later in output_dir


def _names(report_to: str | Sequence[str] | None) -> list[str]:
    return [report_to] if isinstance(report_to, str) else list(report_to or [])


def check_reporting(report_to: str | Sequence[str] | None) -> None:
    """Refuses a W&B that would fail, or wait for a login, when the training starts.

    Args:
        report_to: The recipe's.

    Raises:
        UserError: If W&B is asked for and not installed, or would ask for a key.
    """
    if "wandb" not in _names(report_to):
        return
    if not installed("wandb"):
        raise UserError(
            "report_to names wandb, which is not installed",
            "report_to",
            "pip install -c constraints.txt -e '.[wandb]', or take wandb out of report_to",
        )
    if os.environ.get("WANDB_MODE") not in _NOT_SENT and not _has_key():
        raise UserError(
            "report_to names wandb, and there is no W&B key: it would ask for one",
            "report_to",
            "WANDB_MODE=offline keeps the run in output_dir; to send it: wandb login, or set WANDB_API_KEY",
        )


def _has_key() -> bool:
    """A key where W&B looks for one: the environment, or the netrc file's entry for its host."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        found = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(found and found[2])


def prepare_reporting(report_to: str | Sequence[str] | None, folder: Path) -> None:
    """Called in the training child, before the trainer is made: where they write, unless the user said where.

    Args:
        report_to: The recipe's.
        folder: The training's folder: checkpoints go, `runs` in it stays.
    """
    runs, names = folder / RUNS, _names(report_to)
    if "tensorboard" in names:  # one folder for all tries, so that a resumed training is one curve
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(runs))
    if "wandb" in names:
        runs.mkdir(exist_ok=True)  # W&B would take the system's temporary folder instead
        os.environ.setdefault("WANDB_DIR", str(runs))
        os.environ.setdefault("WANDB_CONSOLE", "off")  # our log has what is printed


def finish_reporting(folder: Path) -> None:
    """Called in the training child at its end: closes W&B's run and takes away its links, some of which point into
    the user's cache. A result whose files can vanish with a cache would be trained again.

    Args:
        folder: As for `prepare_reporting`.
    """
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
    for path in list((folder / RUNS).rglob("*")):
        if path.is_symlink():
            path.unlink()
