"""MLflow's SQLite file, made whole or not at all.

MLflow creates its tables by some forty migrations, which take seconds and are not one transaction. A process killed
in between leaves a file that no later MLflow can open ("table _alembic_tmp_… already exists"). So the file is made
under another name and renamed when it is complete.
"""

import logging
import os
import sys
from pathlib import Path

from preftune.store import locked


def ensure_database(uri: str, artifacts: Path) -> None:
    """Creates the file of a `sqlite:///` URI if it is not there; any other URI is left alone.

    Args:
        uri: MLflow's tracking URI.
        artifacts: Artifact root of the default experiment.
    """
    if not uri.startswith("sqlite:///"):
        return
    path = Path(uri.removeprefix("sqlite:///")).absolute()
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        if path.exists():  # another process was faster
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # how the tables are made is nobody's news
        building = path.with_name(f".{path.name}.building")
        for left in path.parent.glob(f"{building.name}*"):  # of a process that was killed, journal included
            left.unlink()
        SqlAlchemyStore(f"sqlite:///{building}", artifacts.as_uri()).engine.dispose()
        building.replace(path)


def server_command(artifacts: str, port: int) -> list[str]:
    """MLflow's own server for this machine only: `preftune ui`, `preftune up`. Its database is told by
    `MLFLOW_BACKEND_STORE_URI`, since everybody can read a command line and an address may hold a password.

    Args:
        artifacts: From `tracking_address.artifact_root`.
        port: On 127.0.0.1.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--serve-artifacts", "--artifacts-destination", artifacts]
    if os.environ.get("MLFLOW_AUTH_CONFIG_PATH"):  # MLflow reads its passwords' settings from there, if it is asked to
        command += ["--app-name", "basic-auth"]
    return command
