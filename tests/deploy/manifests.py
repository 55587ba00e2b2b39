"""The overlays as `kubectl kustomize` builds them, and what their containers would be started with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.programs import program, run
from tests.tree import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.parent.name for path in KUBERNETES.glob("*/kustomization.yaml"))
Resource = dict[str, Any]


@cache
def built(overlay: str) -> tuple[Resource, ...]:
    """Every object of an overlay."""
    kubectl = program("kubectl", "kubernetes-client")
    said = run(kubectl, "kustomize", str(KUBERNETES / overlay))
    text = "\n".join(line for line in said.splitlines() if not line.startswith("#"))
    return tuple(found for found in yaml.safe_load_all(text) if found)


def one(overlay: str, kind: str) -> Resource:
    """The only object of this kind."""
    (found,) = (each for each in built(overlay) if each["kind"] == kind)
    return found


def pod(resource: Resource) -> Resource:
    """The pod a Deployment, Job or CronJob makes."""
    spec = resource["spec"].get("jobTemplate", resource)["spec"]
    found: Resource = spec["template"]["spec"]
    return found


def pods() -> Iterator[tuple[str, Resource]]:
    """Every pod of the overlays, by overlay and name."""
    for overlay in OVERLAYS:
        for resource in built(overlay):
            if resource["kind"] in {"Deployment", "Job"}:
                yield f"{overlay}/{resource['metadata']['name']}", pod(resource)


def containers(spec: Resource) -> list[Resource]:
    """Init containers first, as they are started."""
    return [*spec.get("initContainers", ()), *spec["containers"]]


def seconds_of_pre_stop(container: Resource) -> float:
    """How long its preStop takes: all of them sleep."""
    words = " ".join(container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ()))
    found = re.search(r"sleep (\d+)", words)
    return float(found[1]) if found else 0.0


@dataclass(frozen=True)
class Started:
    """A container's arguments and variables, with files and ports of this machine in place of the pod's."""

    arguments: list[str]
    environ: dict[str, str]


def started(
    overlay: str, container: Resource, secrets: Mapping[str, str], data: Path, ports: Mapping[str, int]
) -> Started:
    """What Kubernetes would start the container with.

    `secrets` are the values by `name/key`, `data` stands for its writable directory, `ports` for
    the ports the settings leave at their defaults.
    """
    maps = (each for each in everything() if each["kind"] == "ConfigMap")
    configured = {each["metadata"]["name"]: each["data"] for each in maps}
    environ: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            environ |= configured[source["configMapRef"]["name"]]
    for variable in container.get("env", ()):
        if "value" in variable:
            environ[variable["name"]] = variable["value"]
            continue
        reference = variable["valueFrom"]["secretKeyRef"]
        place = f"{reference['name']}/{reference['key']}"
        if place in secrets or not reference.get("optional"):
            environ[variable["name"]] = secrets[place]
    if "TOLLKEEPER_DATA_DIR" in environ:
        assert environ["TOLLKEEPER_DATA_DIR"] in {mount["mountPath"] for mount in container["volumeMounts"]}
        environ["TOLLKEEPER_DATA_DIR"] = str(data)
    environ |= {f"TOLLKEEPER_{name.upper()}_PORT": str(port) for name, port in ports.items()}
    return Started([_here(word, overlay) for word in container["args"]], environ)


@cache
def everything() -> tuple[Resource, ...]:
    """The objects of all overlays, once: `production` puts the same together again."""
    return tuple(resource for overlay in OVERLAYS if overlay != "production" for resource in built(overlay))


def _here(word: str, overlay: str) -> str:
    """A mounted configuration by its path in the tree."""
    return str(KUBERNETES / overlay / Path(word).name) if word.startswith("/etc/tollkeeper/") else word
