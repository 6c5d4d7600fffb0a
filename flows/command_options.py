"""What the commands share: their common options, the Prefect server they use, and what they tell at the end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from cyclopts import Parameter

from preftune.services import prefect_api
from preftune.workspace import Workspace

Overrides = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="One JSON object on stdout, all else on stderr.")]
FailOnReject = Annotated[
    bool, Parameter(negative=(), help="Exit with 3 if the verdict is reject, 4 if it is inconclusive.")
]
OVERRIDES_HELP = "Any recipe key is an option too: --beta=0.2, --evaluation.preset=full."


@contextmanager
def prefect_server(workspace: Workspace) -> Iterator[None]:
    """A server: the configured one, that of `preftune up`, or one of our own; the block imports the flow meanwhile."""
    from flows.local_server import LocalServer, configured_api

    server = None
    if not configured_api():
        if url := prefect_api(workspace):
            os.environ["PREFECT_API_URL"] = url
        else:
            server = LocalServer(workspace)
    os.environ.setdefault("PREFECT_LOCAL_STORAGE_PATH", str(workspace.prefect / "results"))
    yield
    if server is not None:
        server.wait()


def tell(result: dict[str, Any], workspace: Workspace, as_json: bool, fail_on_reject: bool) -> int:
    from flows.output import print_json, show_result

    if as_json:
        print_json(result)
    else:
        show_result(result, workspace)
    outcome = result["verdict"]["outcome"]
    return {"reject": 3, "inconclusive": 4}.get(outcome, 0) if fail_on_reject else 0
