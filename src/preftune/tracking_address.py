"""Where MLflow is and where its artifacts go: what the environment says, what that needs, and how it is shown.

`MLFLOW_TRACKING_URI` names a server (http…) or a database (`sqlite:///…`, `postgresql://…`). A server decides by itself
where artifacts go. Without one they go to `MLFLOW_DEFAULT_ARTIFACT_ROOT`, MLflow's own variable for it, or into the
workspace.
"""

import os
import re
from importlib.metadata import version

from preftune.errors import UserError
from preftune.packages import installed
from preftune.workspace import Workspace

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def is_database(uri: str) -> bool:
    """Whether MLflow's client writes to a database itself, with no server in between."""
    return uri.startswith(_DATABASES)


def artifact_root(workspace: Workspace) -> str:
    """Where artifacts go when no MLflow server decides it; an address or an absolute folder."""
    return os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or workspace.mlflow_artifacts.as_uri()


def without_password(text: str) -> str:
    """`postgresql://user:***@host/mlflow`: for messages, logs and files. Works on any text with addresses in it."""
    return re.sub(r"(\w+://[^\s/:@]*):[^\s/@]*@", r"\1:***@", text)


def _driver(uri: str) -> str:
    """The module that SQLAlchemy opens a PostgreSQL address with: what stands behind the plus, or its default."""
    _, _, named = uri.partition("://")[0].partition("+")
    newer = tuple(int(part) for part in version("sqlalchemy").split(".")[:2]) >= (2, 1)
    return named or ("psycopg" if newer else "psycopg2")


def check_tracking(workspace: Workspace) -> None:
    """Tells before anything is computed that MLflow could not be written for want of a package.

    Raises:
        UserError: If the database's driver or the storage's client is missing.
    """
    uri, root = workspace.mlflow_uri, artifact_root(workspace)
    if uri.startswith("postgresql") and not installed(driver := _driver(uri)):
        raise UserError(
            f"this address needs the package {driver}, which is not installed here",
            f"MLFLOW_TRACKING_URI: {without_password(uri)}",
            "pip install 'preftune[postgres]', and write postgresql+psycopg2://…",
        )
    if is_database(uri) and root.startswith("s3://") and not installed("boto3"):
        raise UserError(
            "this address needs the package boto3, which is not installed here",
            f"MLFLOW_DEFAULT_ARTIFACT_ROOT: {root}",
            "pip install 'preftune[s3]'",
        )
