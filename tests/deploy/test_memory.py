"""Memory that shipped files allow, by the sums of docs/internals/caches.md and the settings' defaults."""

import re
from functools import cache
from typing import Any

import pytest
import yaml

from gateway.core.http_limits import HttpLimits
from gateway.core.lru import POOL_BYTES_MAX
from gateway.features.jobs.stored import REMEMBERED_MAX as JOBS_REMEMBERED_MAX
from gateway.features.runs.opening import REMEMBERED_MAX
from tests.deploy import helm
from tests.deploy.manifests import containers, pod
from tests.deploy.shipped import DEPLOY, interpolated
from tests.deploy.test_chart import SIDECAR
from tests.tree import ROOT

# Measured: of processes that nobody has called yet, of a run, and of a million keys in a keeper.
IDLE_MIB, KEEPER_IDLE_MIB, KEYS_MIB = 52, 149, 264
RUN_BYTES, JOB_BYTES = 590, 1_024
LIMITS = HttpLimits()
WORKER = {
    "a worker that is idle": IDLE_MIB,
    "caches": POOL_BYTES_MAX >> 20,
    "runs": -(-REMEMBERED_MAX * RUN_BYTES >> 20),
    "open jobs": -(-JOBS_REMEMBERED_MAX * JOB_BYTES >> 20),
    "bodies and answers for slow ends": LIMITS.buffered_bytes_max >> 20,
    "calls that wait for capacity": LIMITS.capacity_waiting_bytes_max >> 20,
    "heads that are not complete": LIMITS.heads_bytes_max >> 20,
    "last responses of WebSockets": LIMITS.sockets_kept_bytes_max >> 20,
}
KEEPER = {
    "a keeper that is idle, with its process for people": KEEPER_IDLE_MIB,
    "each million keys": KEYS_MIB,
}
ALWAYS = {"gateway": sum([*WORKER.values()][:3]), "keeper": KEEPER_IDLE_MIB}
NEEDED = {"gateway": sum(WORKER.values()), "keeper": sum(KEEPER.values())}


def mib(text: str) -> int:
    [(number, unit)] = re.findall(r"^(\d+)([MmGg])i?$", text)
    return int(number) << (10 if unit in "Gg" else 0)


@cache
def in_chart(name: str, workers: int = 1) -> dict[str, str]:
    """Return the memory that the chart asks for and allows: `requests` and `limits`."""
    (objects,) = helm.rendered({"settings": {"WORKERS": workers}}, extra=SIDECAR)
    (found,) = (each for each in objects if isinstance(each, dict) and each["metadata"]["name"] == name
                and each["kind"] == "Deployment")  # fmt: skip
    resources = containers(pod(found))[0]["resources"]
    return {kind: amounts["memory"] for kind, amounts in resources.items()}


def test_a_sidecar_has_room_for_what_its_settings_may_take() -> None:
    chart = in_chart("llm")
    assert mib(chart["requests"]) >= ALWAYS["gateway"]
    assert mib(chart["limits"]) >= NEEDED["gateway"]


def test_memory_of_gateways_goes_by_their_workers() -> None:
    assert in_chart("prod-gateway", 8) == {"requests": "768Mi", "limits": "6144Mi"}  # 8 x 96, 8 x 768


def test_template_counts_the_memory_of_an_idle_worker() -> None:
    checks = (DEPLOY / "helm/tollkeeper/templates/_checks.tpl").read_text()
    idle = sum(WORKER[part] for part in ("a worker that is idle", "runs", "open jobs"))
    assert f"mul {idle} 1048576" in checks
    assert f"sub .limit {2 * NEEDED['gateway']}" in checks


def test_the_page_has_the_sums() -> None:
    page = (ROOT / "docs/internals/caches.md").read_text()
    for part, most in (WORKER | KEEPER).items():
        assert f"| {part} | {most} MiB |" in page


@pytest.mark.parametrize("name", NEEDED)
def test_each_program_has_the_memory_that_its_settings_may_take(name: str) -> None:
    """Twice that, as a limit: connections, answers and reports in progress take memory besides."""
    chart = in_chart(f"prod-{name}")
    assert mib(chart["requests"]) >= ALWAYS[name]
    compose: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"][name]
    workers = int(interpolated(compose["environment"].get("TOLLKEEPER_WORKERS", "1"), {}))
    unit = (DEPLOY / f"systemd/tollkeeper-{name}.service").read_text()
    high, most = (mib(*re.findall(rf"^Memory{word}=(\w+)$", unit, re.MULTILINE)) for word in ("High", "Max"))
    limits = {mib(chart["limits"]), mib(interpolated(compose["mem_limit"], {})) // workers, most}
    assert len(limits) == 1, "all that is shipped allows the same"
    assert 2 * NEEDED[name] <= high < most
