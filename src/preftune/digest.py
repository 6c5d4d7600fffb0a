"""Digests: what a step's result depends on, as short strings that are the same on every machine."""

import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

KEY_LENGTH = 20  # hex digits; 80 bits


def json_digest(value: Any) -> str:
    """Digest of a JSON value; the order of keys does not matter.

    Args:
        value: Anything `json.dumps` takes, without NaN.

    Returns:
        20 hex digits.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def file_sha256(path: Path) -> str:
    """The whole sha256 of one file, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def files_digest(folder: Path, names: Iterable[str]) -> str:
    """Digest of the named files below a folder: names and bytes, not times."""
    return json_digest({name: file_sha256(folder / name) for name in sorted(names)})


def code_version(*modules: str) -> str:
    """Digest of the source of our own modules, so that a step runs anew when its logic changed.

    Args:
        modules: File names under `src/preftune`; without an ending they are `.py`.
    """
    here = Path(__file__).parent
    return files_digest(here, [m if "." in m else f"{m}.py" for m in modules])


def library_versions(*names: str) -> dict[str, str]:
    """Installed versions of the libraries that a step's numbers depend on (nothing is imported)."""
    return {name: version(name) for name in names}
