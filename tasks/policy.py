"""What all step tasks share: the cache key, which failures are worth a retry, the GPU slot, quiet errors."""

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from prefect import get_run_logger
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.concurrency.sync import concurrency
from prefect.context import TaskRunContext
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from preftune.errors import Hopeless, PreftuneError, UserError
from preftune.store import find
from preftune.workspace import Workspace

GPU_LIMIT = "gpu"
LEASE_SECONDS = 60  # after a SIGKILL the slot comes back when the lease has run out
SERVER_AWAY_SECONDS = 600  # for so long a run waits for Prefect's server


def _step_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """The step's own key, which holds all that its result depends on; and the workspace it stands in."""
    home = hashlib.sha256(str(parameters["workspace"].home).encode()).hexdigest()[:8]
    return f"preftune-{context.task.name}-{parameters['key']}-{home}"


STEP_CACHE = CacheKeyFnPolicy(cache_key_fn=_step_key)


def worth_a_retry(_task: Any, _run: Any, state: Any) -> bool:
    """Wrong input stays wrong; everything else may be a passing fault."""
    try:
        state.result()
    except (UserError, Hopeless):
        return False
    except Exception:
        return True
    return True


def ensure_gpu_limit(client: SyncPrefectClient) -> int:
    """How many slots the limit has; created with one where it is missing, a changed one is kept."""
    try:
        return client.read_global_concurrency_limit_by_name(GPU_LIMIT).limit
    except ObjectNotFound:
        with suppress(ObjectAlreadyExists):
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=1))
        return 1


@contextmanager
def gpu_slots(wanted: int) -> Iterator[None]:
    """As many slots as a sweep has workers, while it runs on a server of its own. A server that others use, too, is
    left as it is: its owner knows how many devices there are."""
    with get_client(sync_client=True) as client:
        there = ensure_gpu_limit(client)
        own = "PREFTUNE_LOCAL_SERVER" in os.environ
        if there < wanted and not own:
            get_run_logger().warning(
                "%d workers share %d GPU slot(s): for each to have one, prefect gcl update %s --limit %d",
                *(wanted, there, GPU_LIMIT, wanted),
            )
        if there == wanted or not own:
            yield
            return
        client.update_global_concurrency_limit(GPU_LIMIT, GlobalConcurrencyLimitUpdate(limit=wanted))
    try:
        yield
    finally:
        with get_client(sync_client=True) as client:
            client.update_global_concurrency_limit(GPU_LIMIT, GlobalConcurrencyLimitUpdate(limit=1))


def wait_for_server() -> None:
    """Returns when Prefect's server answers. A client that never reached it gives up at the first refused connection;
    after ten minutes that says what is wrong."""
    deadline = time.monotonic() + SERVER_AWAY_SECONDS
    with get_client(sync_client=True) as client:
        while client.api_healthcheck() is not None and time.monotonic() < deadline:
            time.sleep(1)


@contextmanager
def gpu_slot(workspace: Workspace, step: str, key: str) -> Iterator[None]:
    """Holds Prefect's global concurrency limit `gpu` (created with one slot when missing), so that two runs
    never share the device; the CPU counts as one. A step that is finished already needs none.

    While the server is away the lease runs out and cannot be renewed: the step goes on (Prefect would end it), though
    the slot counts as free from then on."""
    if find(workspace, step, key) is not None:
        yield
        return
    wait_for_server()
    with get_client(sync_client=True) as client:
        ensure_gpu_limit(client)
    logger = get_run_logger()
    logger.info("waiting for the GPU slot")
    slot = concurrency(GPU_LIMIT, strict=True, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False)
    with slot:
        logger.info("holding the GPU slot")
        yield


class _OneMessage(logging.Filter):
    """Shows our own errors as their message; Prefect would add a stack trace. And hides the address of the
    command's own server, which ends with the command and serves no pages."""

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith("View at") and os.environ.get("PREFTUNE_LOCAL_SERVER"):
            return False
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, PreftuneError):
            record.exc_info = record.exc_text = None
            record.msg, record.args = str(error), ()
        return True


def quiet_errors() -> None:
    """Installs the filter on Prefect's run loggers; again is harmless."""
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _OneMessage) for f in logger.filters):
            logger.addFilter(_OneMessage())
