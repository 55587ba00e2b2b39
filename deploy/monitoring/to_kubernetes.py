#!/usr/bin/env python3
"""The rules for the chart, which makes a PrometheusRule of them: `python deploy/monitoring/to_kubernetes.py`.

Writes deploy/helm/tollkeeper/files/rules.yaml; a test tells when it is behind.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "helm" / "tollkeeper" / "files" / "rules.yaml"


def groups() -> str:
    """The groups of both files, indented by what stands around them."""
    lines: list[str] = []
    for name in ("recording.yml", "alerts.yml"):
        written = (HERE / "rules" / name).read_text().partition("groups:\n")[2]
        lines += ["  " + line if line else line for line in written.splitlines()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(groups())
