"""Lets `prefect deployment run dpo-pipeline` work in the project's folder, after `preftune up` without any export.

A start-up hook of Prefect (entry point group `prefect.plugins`, switched on in pyproject.toml). A name without a
slash means `name/name`, or else the only deployment of that name: Prefect's client splits the name at its slash and
fails with a ValueError where there is none. And where no server is configured, it is the one of `preftune up`.
"""

import functools
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.exceptions import ObjectNotFound
from prefect.plugins import SetupResult, register_hook


@register_hook
def setup_environment(*, ctx: Any) -> SetupResult | None:
    """Completes short names; names the server of `preftune up` where none is configured."""
    _complete_short_names()
    if ctx.api_url:
        return None
    from preftune.services import prefect_api
    from preftune.workspace import find_workspace

    url = prefect_api(find_workspace())
    return SetupResult(env={"PREFECT_API_URL": url}) if url else None


def _complete_short_names() -> None:
    """Wraps `PrefectClient.read_deployment_by_name`, once."""
    original = PrefectClient.read_deployment_by_name
    if getattr(original, "completes_short_names", False):
        return

    @functools.wraps(original)
    async def read_deployment_by_name(self: PrefectClient, name: str, *args: Any, **kwargs: Any) -> Any:
        if "/" in name:
            return await original(self, name, *args, **kwargs)
        try:
            return await original(self, f"{name}/{name}", *args, **kwargs)
        except ObjectNotFound:
            found = await self.read_deployments(
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name]))
            )
            if len(found) != 1:
                raise
            return found[0]

    read_deployment_by_name.completes_short_names = True  # type: ignore[attr-defined]
    PrefectClient.read_deployment_by_name = read_deployment_by_name  # type: ignore[method-assign]
