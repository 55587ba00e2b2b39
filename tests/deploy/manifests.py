"""Objects of Kubernetes as the chart renders them, and what their containers are started with."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Resource = dict[str, Any]
# `USER` of the image.
IMAGE_USER = 10001


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


def container_user(spec: Resource, container: Resource) -> tuple[int, int | None]:
    """The user that a container runs as, said by itself, its pod or the image; the pod's group of files."""
    said = spec.get("securityContext", {}) | container.get("securityContext", {})
    return said.get("runAsUser", IMAGE_USER), spec.get("securityContext", {}).get("fsGroup")


def file_access(spec: Resource, volume: Resource) -> tuple[int, int]:
    """Group and mode that a kubelet gives the files of a Secret; their owner is root.

    A group of the pod (`fsGroup`) may read them too, whatever `defaultMode` says (kubernetes.io, *Configure a
    Security Context*; `volume_linux.go` of 1.31: 0440 is added to read-only volumes).
    """
    mode = (volume.get("projected") or volume["secret"]).get("defaultMode", 0o644)
    group = spec.get("securityContext", {}).get("fsGroup")
    return (0, mode) if group is None else (group, mode | 0o440)


def is_read_by(user: int, groups: set[int], access: tuple[int, int]) -> bool:
    group, mode = access
    return user == 0 or bool(mode & (0o040 if group in groups else 0o004))


def mounted(folder: Path, files: Mapping[str, str], access: tuple[int, int]) -> Path:
    """Make a volume as a kubelet does: `..data` leads to a folder of the moment, each file into that."""
    moment = folder / "..2026_11_28_00_00_00.1"
    moment.mkdir(parents=True)
    (folder / "..data").symlink_to(moment.name)
    for name, value in files.items():
        (moment / name).write_text(value)
        if os.geteuid() == 0:
            os.chown(moment / name, 0, access[0])
        (moment / name).chmod(access[1])
        (folder / name).symlink_to(f"..data/{name}")
    return folder


def environment(
    objects: list[Resource], spec: Resource, container: Resource, secrets: Mapping[str, str], folder: Path
) -> dict[str, str]:
    """The variables of a container, its Secrets mounted in `folder`; `secrets` are values by `name/key`."""
    maps = {each["metadata"]["name"]: each["data"] for each in objects if each["kind"] == "ConfigMap"}
    volume = next(one["projected"] for one in spec["volumes"] if one["name"] == "secrets")
    environ = {one["name"]: one["value"] for one in container["env"]}
    for source in container.get("envFrom", ()):
        environ |= maps[source["configMapRef"]["name"]]
    paths = {
        f"/run/secrets/tollkeeper/{item['path']}": f"{source['secret']['name']}/{item['key']}"
        for source in volume["sources"]
        for item in source["secret"]["items"]
    }
    named = {variable: path for variable, path in environ.items() if variable.endswith("_FILE")}
    files = {Path(path).name: secrets[paths[path]] for path in named.values()}
    there = mounted(
        folder, files, file_access(spec, next(one for one in spec["volumes"] if one["name"] == "secrets"))
    )
    return environ | {variable: str(there / Path(path).name) for variable, path in named.items()}
