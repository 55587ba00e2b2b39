#!/usr/bin/env python3
"""The rules for the chart, which makes a PrometheusRule of them: `python deploy/monitoring/to_kubernetes.py`.

Writes deploy/helm/tollkeeper/files/rules*.yaml; a test tells when one is behind. Charts take those of
the roles that they run.
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
    """The groups of a target's files, indented by what stands around them."""
    lines: list[str] = []
    for name in TARGETS[target]:
        written = (HERE / "rules" / name).read_text().partition("groups:\n")[2]
        lines += ["  " + line if line else line for line in written.splitlines()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for target in TARGETS:
        (FILES / target).write_text(groups(target))
