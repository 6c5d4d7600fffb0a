"""Every entry point in prefect.yaml exists, its parameters are the flow's, its recipe is there."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows import short_names
from flows.artifacts import VERDICT_EVENT

ROOT = Path(__file__).parent.parent
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.fixture(params=DEPLOYMENTS, ids=lambda d: d["name"])
def deployment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(ROOT)
    return request.param


def test_flow_loads_and_takes_the_parameters(deployment: dict[str, Any]) -> None:
    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    flow.validate_parameters(deployment["parameters"])
    assert (ROOT / deployment["parameters"]["recipe"]).is_file()
    assert "preftune" in deployment["tags"], "automations/notifications.yaml knows our runs by it"


def test_names_are_single_so_that_the_short_form_works() -> None:
    names = [d["name"] for d in DEPLOYMENTS]
    assert len(names) == len(set(names)) and {"dpo-pipeline", "smoke"} <= set(names)


def test_parameters_are_described_for_the_form(deployment: dict[str, Any]) -> None:
    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    properties = parameter_schema(flow).properties
    assert set(properties) >= {"recipe", "overrides"}
    assert all(p.get("description") for p in properties.values()), properties


def test_schedules_are_shipped_inactive() -> None:
    assert all(not s.get("active", True) for d in DEPLOYMENTS for s in d.get("schedules", []))


def test_short_names_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`x` is `x/x`, or else the only deployment called x; two of them are as unknown as none."""
    asked: list[str] = []

    async def by_name(self: Any, name: str) -> str:
        asked.append(name)
        if name in ("smoke/smoke", "twice/twice"):
            raise ObjectNotFound(http_exc=Exception())
        return "deployment"

    async def by_filter(self: Any, deployment_filter: Any) -> list[str]:
        return {"smoke": ["dpo-pipeline/smoke"], "twice": ["a/twice", "b/twice"]}[deployment_filter.name.any_[0]]

    monkeypatch.setattr(PrefectClient, "read_deployment_by_name", by_name)
    monkeypatch.setattr(PrefectClient, "read_deployments", by_filter)
    short_names.setup_environment(ctx=SimpleNamespace(api_url="http://configured/api"))
    short_names.setup_environment(ctx=SimpleNamespace(api_url="http://configured/api"))  # twice is harmless
    client = object.__new__(PrefectClient)
    for name in ("dpo-pipeline", "flow/other"):
        assert asyncio.run(client.read_deployment_by_name(name)) == "deployment"
    assert asked == ["dpo-pipeline/dpo-pipeline", "flow/other"]
    assert asyncio.run(client.read_deployment_by_name("smoke")) == "dpo-pipeline/smoke"
    with pytest.raises(ObjectNotFound):
        asyncio.run(client.read_deployment_by_name("twice"))


def test_the_server_of_up_is_used_where_none_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrefectClient, "read_deployment_by_name", PrefectClient.read_deployment_by_name)
    monkeypatch.setattr("preftune.services.prefect_api", lambda workspace: f"of {workspace.project}")
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    found = short_names.setup_environment(ctx=SimpleNamespace(api_url=None))
    assert found is not None and found.env == {"PREFECT_API_URL": f"of {tmp_path}"}
    assert short_names.setup_environment(ctx=SimpleNamespace(api_url="http://configured/api")) is None


def test_the_automations_are_what_prefect_takes() -> None:
    text = (ROOT / "automations/notifications.yaml").read_text().replace("BLOCK_ID", str(uuid4()))
    found = [AutomationCore.model_validate(a) for a in yaml.safe_load(text)["automations"]]
    expected = [set(a.trigger.expect) for a in found]  # type: ignore[union-attr]
    assert expected == [{"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}, {VERDICT_EVENT}]
