"""Where MLflow is and where its artifacts go: what the environment says, what that needs, and how it is shown.

`MLFLOW_TRACKING_URI` names a server (http…) or a database (`sqlite:///…`, `postgresql://…`). A server decides by itself
where artifacts go. Without one they go to `MLFLOW_DEFAULT_ARTIFACT_ROOT`, MLflow's own variable for it, or into the
workspace.
"""

import os
import re

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


def check_tracking(workspace: Workspace) -> None:
    """Tells before anything is computed that MLflow could not be written for want of a package.

    Raises:
        UserError: If the database's driver or the storage's client is missing.
    """
    uri, root = workspace.mlflow_uri, artifact_root(workspace)
    needs = [
        (uri.startswith(("postgresql://", "postgresql+psycopg2://")), "MLFLOW_TRACKING_URI", "psycopg2", "postgres"),
        (is_database(uri) and root.startswith("s3://"), "MLFLOW_DEFAULT_ARTIFACT_ROOT", "boto3", "s3"),
    ]
    for needed, variable, module, extra in needs:
        if needed and not installed(module):
            raise UserError(
                f"{variable} needs the package {module}, which is not installed here",
                without_password(uri if variable == "MLFLOW_TRACKING_URI" else root),
                f"pip install 'preftune[{extra}]'",
            )
