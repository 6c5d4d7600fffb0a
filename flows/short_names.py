"""Lets `prefect deployment run dpo-pipeline` work: a name without a slash means `name/name`.

Prefect's client splits the name at its slash and fails with a ValueError where there is none. This start-up hook
(entry point group `prefect.plugins`, switched on in pyproject.toml) completes the name first.
"""

import functools
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.plugins import register_hook


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Wraps `PrefectClient.read_deployment_by_name`, once."""
    original = PrefectClient.read_deployment_by_name
    if getattr(original, "completes_short_names", False):
        return

    @functools.wraps(original)
    async def read_deployment_by_name(self: PrefectClient, name: str, *args: Any, **kwargs: Any) -> Any:
        return await original(self, name if "/" in name else f"{name}/{name}", *args, **kwargs)

    read_deployment_by_name.completes_short_names = True  # type: ignore[attr-defined]
    PrefectClient.read_deployment_by_name = read_deployment_by_name  # type: ignore[method-assign]
