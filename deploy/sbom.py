#!/usr/bin/env python3
"""Print the packages installed with this Python as a CycloneDX document: `python deploy/sbom.py`."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import Distribution, distributions


def component(package: Distribution) -> dict[str, object]:
    """Return the CycloneDX component of a package: name, version, package URL and its stated licence."""
    name = package.metadata["Name"].lower().replace("_", "-")
    found: dict[str, object] = {
        "type": "library",
        "name": name,
        "version": package.version,
        "purl": f"pkg:pypi/{name}@{package.version}",
    }
    licence = package.metadata.get("License-Expression")
    if licence:
        found["licenses"] = [{"expression": licence}]
    return found


def document() -> dict[str, object]:
    """Return the complete document, packages sorted by name, with the program itself as main component."""
    packages = sorted((component(each) for each in distributions()), key=lambda each: str(each["name"]))
    version = platform.python_version()
    purl = f"pkg:generic/python@{version}"
    python = {"type": "platform", "name": "python", "version": version, "purl": purl}
    (own,) = (each for each in packages if each["name"] == "tollkeeper-gateway")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": own | {"type": "application"}},
        "components": [python, *(each for each in packages if each is not own)],
    }


if __name__ == "__main__":
    json.dump(document(), sys.stdout, indent=1)
