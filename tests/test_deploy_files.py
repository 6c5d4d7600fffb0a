"""The files for containers and clusters, as far as they can be checked without an engine: what they name exists, the
work pools' templates are Prefect's own with additions, and Prefect makes whole jobs of them."""

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from uuid import uuid4

import prefect
import pytest
import yaml
from prefect.utilities.templating import apply_values, find_placeholders

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TYPES = {"kubernetes": "prefect-kubernetes", "docker": "prefect-docker"}


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of each line; continued lines joined, comments left out."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def copied() -> list[str]:
    return [source for what, rest in instructions() if what == "COPY" for source in rest.split()[:-1]]


def test_what_the_image_copies_exists_and_is_in_the_build_context() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*", "nothing but what is named gets into the image"
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert set(copied()) == let_in
    assert all((ROOT / name).exists() for name in copied())
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [package["project"]["readme"], *package["project"]["license-files"]]
    assert set(needed) <= set(copied()), "the package cannot be built without them"
    assert {Path(p).parts[0] for p in package["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]} <= let_in


def test_the_image_installs_what_there_is() -> None:
    asked = re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE)
    assert len(asked) == 2 and {e for each in asked for e in each.split(",")} <= set(EXTRAS)
    assert re.search(r"(?m)^torch==", (ROOT / "constraints.txt").read_text()), "the line that the image installs"
    assert "--constraint constraints.txt" in DOCKERFILE
    for what, rest in instructions():
        if what == "RUN":
            for index in re.findall(r"https?://\S+", rest):
                assert index.startswith("https://")


def test_the_image_runs_as_nobody_special_and_holds_no_secrets() -> None:
    users = [rest for what, rest in instructions() if what == "USER"]
    assert users == ["10001"] and "--uid 10001" in DOCKERFILE
    after = [what for what, _ in instructions()]
    assert after.index("USER") < after.index("CMD")
    assert not re.search(r"(?i)(token|secret|password|key)\s*=", DOCKERFILE)
    refused = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("**/")]
    assert any(fnmatch("src/.env.local", pattern) for pattern in refused)


def default(kind: str) -> dict[str, Any]:
    """Prefect's own template of a pool, as its server hands it out."""
    views = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"
    return json.loads(views.read_text())[TYPES[kind]][kind]["default_base_job_configuration"]


def shipped(kind: str) -> dict[str, Any]:
    return json.loads((ROOT / f"deploy/{kind}-job.json").read_text())


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {p: v for k, value in items for p, v in leaves(value, (*path, k)).items()}
    return {path: tree}


@pytest.mark.parametrize("kind", TYPES)
def test_a_template_is_prefects_own_with_additions(kind: str) -> None:
    ours, theirs = leaves(shipped(kind)["job_configuration"]), leaves(default(kind)["job_configuration"])
    assert {p: ours.get(p) for p in theirs} == theirs
    assert set(default(kind)["variables"]["properties"]) <= set(shipped(kind)["variables"]["properties"])


@pytest.mark.parametrize("kind", TYPES)
def test_a_templates_variables_are_declared_used_and_described(kind: str) -> None:
    template = shipped(kind)
    declared = template["variables"]["properties"]
    used = {p.name for p in find_placeholders(template["job_configuration"])}
    assert used == set(declared)
    assert all(v.get("title") and v.get("description") and v.get("type", "allOf" in v) for v in declared.values())


def rendered(kind: str, **values: Any) -> dict[str, Any]:
    """The job as a worker makes it: the pool's defaults, then a deployment's own values."""
    template = shipped(kind)
    defaults = {k: v["default"] for k, v in template["variables"]["properties"].items() if "default" in v}
    return apply_values(template["job_configuration"], defaults | values, remove_notset=True)


def test_a_kubernetes_job_asks_for_gpus_mounts_the_workspace_and_names_the_secret() -> None:
    job = rendered("kubernetes", name="dpo", gpus=2, command="prefect flow-run execute")["job_manifest"]
    assert "{{" not in json.dumps(job)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert container["envFrom"] == [{"secretRef": {"name": "preftune", "optional": True}}]
    home = shipped("kubernetes")["variables"]["properties"]["env"]["default"]["PREFTUNE_HOME"]
    places = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    assert any(home.startswith(f"{place}/") for place in places)
    claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if v["name"] != "shm"}
    volume = yaml.safe_load((ROOT / "deploy/kubernetes-volume.yaml").read_text())
    assert claims == {"workspace": volume["metadata"]["name"]}
    assert set(places.values()) == {v["name"] for v in pod["volumes"]}
    assert volume["metadata"]["namespace"] == shipped("kubernetes")["variables"]["properties"]["namespace"]["default"]
    assert pod["securityContext"]["runAsUser"] == 10001 and f"uid {pod['securityContext']['runAsUser']}" in DOCKERFILE
    assert pod["terminationGracePeriodSeconds"] >= 60, "a training has 60 s to save its checkpoint"


def test_a_docker_job_has_gpus_and_the_images_volumes() -> None:
    types = pytest.importorskip("docker.types")
    job = rendered("docker", name="dpo")
    (gpus,) = job["container_create_kwargs"]["device_requests"]
    assert types.DeviceRequest(**gpus)["Capabilities"] == [["gpu"]] and types.DeviceRequest(**gpus)["Count"] == -1
    declared = re.search(r"VOLUME (\[.*\])", DOCKERFILE)
    assert declared and [v.partition(":")[2] for v in job["volumes"]] == json.loads(declared[1])


def test_prefect_takes_the_automations() -> None:
    from prefect.server.events.schemas.automations import AutomationCore

    for path in (ROOT / "automations").glob("*.yaml"):
        found = yaml.safe_load(path.read_text().replace("BLOCK_ID", str(uuid4())))
        for each in found if isinstance(found, list) else found.get("automations", [found]):
            AutomationCore.model_validate(each)


def test_a_silent_run_counts_as_dead_only_after_several_missing_heartbeats() -> None:
    from prefect.settings.models.flows import FlowsSettings

    zombies = yaml.safe_load((ROOT / "automations/zombie-runs.yaml").read_text())
    every = FlowsSettings.model_fields["heartbeat_frequency"].default
    assert zombies["trigger"]["within"] > 3 * every
