#!/usr/bin/env python3
"""The rules as the Prometheus operator's own resource: `python deploy/monitoring/to_kubernetes.py`.

Writes deploy/kubernetes/monitoring/rules.yaml, and the groups alone for the chart in deploy/helm; tests tell
when one is behind.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "kubernetes" / "monitoring" / "rules.yaml"
OF_CHART = HERE.parent / "helm" / "tollkeeper" / "files" / "rules.yaml"
HEAD = """\
# Made of deploy/monitoring/rules by deploy/monitoring/to_kubernetes.py; change those.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tollkeeper
  labels:
    app.kubernetes.io/name: tollkeeper
    app.kubernetes.io/component: monitoring
spec:
  groups:
"""


def rules() -> str:
    """The resource as text."""
    return HEAD + groups()


def groups() -> str:
    """The groups of both files, indented by what stands around them."""
    lines: list[str] = []
    for name in ("recording.yml", "alerts.yml"):
        written = (HERE / "rules" / name).read_text().partition("groups:\n")[2]
        lines += ["  " + line if line else line for line in written.splitlines()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(rules())
    OF_CHART.write_text(groups())
