"""Labels from and for other programs: Label Studio (`label_studio.py`) and Argilla (`argilla.py`)."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preftune.errors import UserError
from preftune.own_pairs.argilla import ARGILLA_SETTINGS, export_argilla, import_argilla
from preftune.own_pairs.label_import import COUNTS
from preftune.own_pairs.label_studio import LABEL_STUDIO_CONFIG, export_label_studio, import_label_studio
from preftune.own_pairs.labels import LabelFile, LabelTask

__all__ = [
    "ARGILLA_SETTINGS",
    "COUNTS",
    "LABEL_STUDIO_CONFIG",
    "add_labels",
    "export_argilla",
    "export_label_studio",
    "import_argilla",
    "import_label_studio",
    "read_export",
]


def read_export(path: Path) -> Any:
    """What a program's JSON file holds.

    Raises:
        UserError: If it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except OSError as e:
        raise UserError(f"cannot be read: {e.strerror or e}", str(path)) from None
    except (ValueError, RecursionError):
        raise UserError("is no JSON file", str(path), "give the file as the program exported it") from None


def add_labels(path: Path, read: Callable[..., Any], tasks: Sequence[LabelTask], file: LabelFile) -> dict[str, int]:
    """Adds the labels of another program's file that are new.

    Args:
        path: The program's file.
        read: `import_argilla` or `import_label_studio`.
        tasks: The tasks that count.
        file: The file of labels.

    Returns:
        How many, by the names of `COUNTS`; of those other than `labels` only what there is.

    Raises:
        UserError: If it is no file of that program.
    """
    labels, counts = read(read_export(path), tasks, file.read(), str(path))
    file.append(*labels)
    return {name: count for name, count in counts.items() if count or name == "labels"}
