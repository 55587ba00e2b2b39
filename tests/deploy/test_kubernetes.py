"""The manifests: every overlay builds, is valid, and its parts fit each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gateway.run.serving import SETTLING_S_MAX
from gateway.settings import settings
from tests.deploy.manifests import (
    KUBERNETES,
    OVERLAYS,
    Resource,
    built,
    containers,
    everything,
    one,
    pod,
    pods,
    seconds_of_pre_stop,
)
from tests.tree import ROOT

# Native sidecars came with 1.29; the newest is whatever the schemas know.
VERSIONS = ("1.29", kubernetes_validate.latest_version())
PODS = dict(pods())


def selected(labels: Resource) -> list[Resource]:
    """The Deployments and Jobs whose pods have these labels."""
    return [
        each for each in everything()
        if each["kind"] in {"Deployment", "Job"}
        and labels.items() <= each["spec"]["template"]["metadata"]["labels"].items()
    ]  # fmt: skip


def ports(resource: Resource) -> set[str]:
    """Names of the ports a Deployment's pods have."""
    return {port["name"] for each in containers(pod(resource)) for port in each.get("ports", ())}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_overlay_builds_objects_kubernetes_accepts(overlay: str) -> None:
    assert built(overlay)
    for resource in built(overlay):
        for version in VERSIONS:
            kubernetes_validate.validate(resource, version, strict=True)


def test_the_validator_would_tell_of_an_unknown_field() -> None:
    wrong = dict(one("keeper", "Service"))
    wrong["spec"] = wrong["spec"] | {"prots": []}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", PODS)
def test_every_container_is_restricted(name: str) -> None:
    """What the pod security standard `restricted` asks for, and a root file system nobody writes to."""
    spec = PODS[name]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] >= 10_000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(spec):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()
    for volume in spec.get("volumes", ()):
        assert volume.keys() <= {"name", "configMap", "emptyDir"}


@pytest.mark.parametrize("name", PODS)
def test_what_a_pod_refers_to_is_there(name: str) -> None:
    spec = PODS[name]
    secrets = list(yaml.safe_load_all((KUBERNETES / "secret.example.yaml").read_text()))
    keys = {each["metadata"]["name"]: each["stringData"].keys() for each in secrets}
    maps = {each["metadata"]["name"]: each["data"] for each in everything() if each["kind"] == "ConfigMap"}
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    for volume in volumes.values():
        assert "configMap" not in volume or volume["configMap"]["name"] in maps
    for container in containers(spec):
        for source in container.get("envFrom", ()):
            if "configMapRef" in source:
                assert source["configMapRef"]["name"] in maps
            else:
                assert source["secretRef"]["name"] in keys
        for variable in (each for each in container.get("env", ()) if "value" not in each):
            reference = variable["valueFrom"]["secretKeyRef"]
            assert reference["key"] in keys[reference["name"]]
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes.keys()
        names = {port["name"] for port in container.get("ports", ())}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container.get(probe, {})
            assert not asked or (asked.get("httpGet") or asked["tcpSocket"])["port"] in names


def test_every_variable_is_a_setting() -> None:
    for name, spec in PODS.items():
        for container in containers(spec):
            for variable in container.get("env", ()):
                assert variable["name"].removeprefix("TOLLKEEPER_").lower() in settings.NAMES, name
    for name in one("base", "ConfigMap")["data"]:
        assert name.removeprefix("TOLLKEEPER_").lower() in settings.NAMES


@pytest.mark.parametrize("path", sorted(KUBERNETES.glob("*/config.yaml")), ids=lambda path: path.parent.name)
def test_each_configuration_is_valid(path: Path) -> None:
    read = settings.load({}, path)
    assert read.routes


def test_a_sidecar_has_the_time_it_needs_to_end() -> None:
    spec = pod(one("sidecar", "Deployment"))
    gateway = next(each for each in containers(spec) if each["args"][0] == "serve")
    own = {each["name"]: each.get("value") for each in gateway["env"]}
    shared = one("base", "ConfigMap")["data"]
    grace_s = float(own.get("TOLLKEEPER_SHUTDOWN_GRACE_S") or shared["TOLLKEEPER_SHUTDOWN_GRACE_S"])
    assert spec["terminationGracePeriodSeconds"] > seconds_of_pre_stop(gateway) + grace_s + SETTLING_S_MAX


def test_policies_let_clients_and_pgbouncer_through() -> None:
    def policy(overlay: str) -> Resource:
        found: Resource = one(overlay, "NetworkPolicy")["spec"]
        return found

    def out(overlay: str) -> set[int]:
        return {port["port"] for rule in policy(overlay)["egress"] for port in rule["ports"]}

    clients, monitoring = policy("sidecar")["ingress"]
    assert clients == {"from": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": "http"}]}
    assert monitoring["ports"] == [{"protocol": "TCP", "port": "ops"}]
    assert policy("sidecar")["policyTypes"] == ["Ingress"]  # what the service reaches is its own affair
    assert out("keeper") == {53, 6379, 26379, 5432, 6432, 443, 465, 587}
    assert out("migrate") == {53, 5432, 6432}


def test_traffic_enters_through_the_sidecar_alone() -> None:
    spec = pod(one("sidecar", "Deployment"))
    (sidecar,), (service,) = spec["initContainers"], spec["containers"]
    assert sidecar["restartPolicy"] == "Always"
    assert {probe for probe in sidecar if probe.endswith("Probe")} == {
        "startupProbe", "readinessProbe", "livenessProbe",
    }  # fmt: skip
    (port,) = one("sidecar", "Service")["spec"]["ports"]
    assert port["targetPort"] in {each["name"] for each in sidecar["ports"]}
    assert "ports" not in service
    assert service["args"][service["args"].index("--host") + 1] == "127.0.0.1"
    table = settings.load({}, KUBERNETES / "sidecar" / "config.yaml").table
    address = f"http://127.0.0.1:{service['args'][service['args'].index('--port') + 1]}"
    used = {route.upstream for route in table.routes}
    assert {target.base_url for target in table.upstreams if target.name in used} == {address}
    # The gateway ends before the service is asked to.
    assert sidecar["lifecycle"]["preStop"]["exec"]["command"][-1].endswith("kill -TERM 1")
    assert seconds_of_pre_stop(service) > seconds_of_pre_stop(sidecar)


def selectors() -> Iterator[tuple[str, Resource, Resource]]:
    """What goes by labels: its name, itself, and the labels."""
    for each in everything():
        spec: Any = each.get("spec", {})
        name = f"{each['kind']} {each['metadata']['name']}"
        if each["kind"] == "Service":
            yield name, each, spec["selector"]
        elif each["kind"] == "PodDisruptionBudget":
            yield name, each, spec["selector"]["matchLabels"]
        elif each["kind"] == "NetworkPolicy":
            yield name, each, spec["podSelector"]["matchLabels"]


def test_labels_lead_to_pods_and_names_to_their_ports() -> None:
    kinds = set()
    for name, each, labels in selectors():
        kinds.add(each["kind"])
        found = selected(labels)
        assert len(found) == 1, name
        spec = each["spec"]
        wanted = {port["targetPort"] for port in spec.get("ports", ())}
        wanted |= {port["port"] for rule in spec.get("ingress", ()) for port in rule["ports"]}
        assert all(wanted <= ports(deployment) for deployment in found), name
    assert kinds == {"Service", "PodDisruptionBudget", "NetworkPolicy"}


def test_each_version_has_a_migration_of_its_own() -> None:
    """A Job cannot be changed once it is there: another version's has another name, and goes by itself."""
    version = yaml.safe_load((ROOT / "deploy" / "helm" / "tollkeeper" / "Chart.yaml").read_text())[
        "appVersion"
    ]
    job = one("migrate", "Job")
    assert job["metadata"]["name"] == f"tollkeeper-migrate-{version.replace('.', '-')}"
    assert job["spec"]["ttlSecondsAfterFinished"] > 0
    images = {each["image"] for spec in PODS.values() for each in containers(spec)}
    assert {image for image in images if "tollkeeper" in image} == {f"registry.example/tollkeeper:{version}"}


def test_only_keepers_and_the_migration_know_the_database() -> None:
    for name, spec in PODS.items():
        known = {variable["name"] for each in containers(spec) for variable in each.get("env", ())}
        serving = "serve" in {each["args"][0] for each in containers(spec)}
        assert ("TOLLKEEPER_DATABASE_URL" in known) is not serving, name
        assert not (serving and "TOLLKEEPER_ADMIN_TOKEN" in known), name
        assert ("TOLLKEEPER_DATABASE_OWNER_URL" in known) is ("-migrate" in name), name
