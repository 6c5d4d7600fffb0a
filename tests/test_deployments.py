"""Every entry point in prefect.yaml exists, its parameters are the flow's, its recipe is there."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows import short_names

ROOT = Path(__file__).parent.parent
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.fixture(params=DEPLOYMENTS, ids=lambda d: d["name"])
def deployment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(ROOT)
    return request.param


def test_flow_loads_and_takes_the_parameters(deployment: dict[str, Any]) -> None:
    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    assert flow.name == deployment["name"], "flow and deployment share the name, so that the short form works"
    flow.validate_parameters(deployment["parameters"])
    assert (ROOT / deployment["parameters"]["recipe"]).is_file()


def test_parameters_are_described_for_the_form(deployment: dict[str, Any]) -> None:
    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    properties = parameter_schema(flow).properties
    assert {"recipe", "overrides"} <= set(properties)
    assert all(p.get("description") for p in properties.values()), properties


def test_schedules_are_shipped_inactive() -> None:
    assert all(not s.get("active", True) for d in DEPLOYMENTS for s in d.get("schedules", []))


def test_short_names_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def recorder(self: Any, name: str) -> str:
        asked.append(name)
        return "deployment"

    monkeypatch.setattr(PrefectClient, "read_deployment_by_name", recorder)
    short_names.setup_environment(ctx=None)
    short_names.setup_environment(ctx=None)  # twice is harmless
    client = object.__new__(PrefectClient)
    for name in ("dpo-pipeline", "flow/other"):
        assert asyncio.run(client.read_deployment_by_name(name)) == "deployment"
    assert asked == ["dpo-pipeline/dpo-pipeline", "flow/other"]
