#!/usr/bin/env python3
"""Write the alert and recording rules for the Helm chart: `python deploy/monitoring/to_kubernetes.py`.

Writes deploy/helm/tollkeeper/files/rules*.yaml, and a test fails if one is outdated. A chart makes a
PrometheusRule of the files for the roles that it runs.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = HERE.parent / "helm" / "tollkeeper" / "files"
TARGETS = {
    "rules.yaml": ("recording.yml", "alerts.yml"),
    "rules-gateway.yaml": ("gateways.yml",),
    "rules-keeper.yaml": ("keepers.yml",),
}


def groups(target: str) -> str:
    """Return the alert rules of the files for `target`, indented for the Helm template around them."""
    lines: list[str] = []
    for name in TARGETS[target]:
        written = (HERE / "rules" / name).read_text().partition("groups:\n")[2]
        lines += ["  " + line if line else line for line in written.splitlines()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for target in TARGETS:
        (FILES / target).write_text(groups(target))
