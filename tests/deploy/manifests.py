"""Objects of Kubernetes as the chart renders them, and what their containers are started with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Resource = dict[str, Any]


def pod(resource: Resource) -> Resource:
    """The pod a Deployment, Job or CronJob makes."""
    spec = resource["spec"].get("jobTemplate", resource)["spec"]
    found: Resource = spec["template"]["spec"]
    return found


def containers(spec: Resource) -> list[Resource]:
    """Init containers first, as they are started."""
    return [*spec.get("initContainers", ()), *spec["containers"]]


def seconds_of_pre_stop(container: Resource) -> float:
    """How long its preStop takes: all of them sleep."""
    words = " ".join(container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ()))
    found = re.search(r"sleep (\d+)", words)
    return float(found[1]) if found else 0.0


def environment(
    objects: list[Resource], spec: Resource, container: Resource, secrets: Mapping[str, str], folder: Path
) -> dict[str, str]:
    """The variables of a container; files of Secrets are in `folder`, `secrets` are values by `name/key`."""
    maps = {each["metadata"]["name"]: each["data"] for each in objects if each["kind"] == "ConfigMap"}
    volume = next(one["projected"] for one in spec["volumes"] if one["name"] == "secrets")
    environ = {one["name"]: one["value"] for one in container["env"]}
    for source in container.get("envFrom", ()):
        environ |= maps[source["configMapRef"]["name"]]
    folder.mkdir(parents=True, exist_ok=True)
    paths = {
        f"/run/secrets/tollkeeper/{item['path']}": f"{source['secret']['name']}/{item['key']}"
        for source in volume["sources"]
        for item in source["secret"]["items"]
    }
    for variable, path in environ.items():
        if variable.endswith("_FILE"):
            file = folder / Path(path).name
            file.write_text(secrets[paths[path]])
            environ[variable] = str(file)
    return environ
