"""The metrics of a scrape, written from plain snapshots.

A snapshot is what `gateway/telemetry/snapshot_files.py` merges: numbers, rows `[label…, number]`, histograms
`{"buckets": […], "sum": seconds}` whose counts are not cumulative and whose last bucket is
everything above the last of `bounds`. A fact that is absent from the snapshot is not written. Formats:
https://prometheus.io/docs/instrumenting/exposition_formats/ and OpenMetrics 1.0.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from gateway.telemetry.facts import FACTS, Fact

PREFIX = "tollkeeper_"
OPEN_METRICS = "application/openmetrics-text"
PLAIN_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPEN_TYPE = f"{OPEN_METRICS}; version=1.0.0; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})

# What its name ends with, its labels as they are written, its number.
Sample = tuple[str, str, float]


def content_type_of(accept: str) -> str:
    """In which of the two formats a scrape is written: OpenMetrics where that is accepted."""
    wanted = {each.partition(";")[0].strip() for each in accept.split(",")}
    return OPEN_TYPE if OPEN_METRICS in wanted else PLAIN_TYPE


def render(accept: str, snapshot: Mapping[str, Any]) -> tuple[bytes, str]:
    """The scrape's body and content type: Prometheus text, or OpenMetrics where accepted."""
    content_type, lines = content_type_of(accept), list[str]()
    is_open, bounds = content_type == OPEN_TYPE, snapshot.get("bounds", [])
    for fact in FACTS:
        value = snapshot.get(fact.name)
        if value is not None:
            _write(lines, fact, _samples(fact, value, bounds), is_open=is_open)
    _write(lines, Fact("build", "info", "What is running."), [("_info", _build(), 1.0)], is_open=is_open)
    return ("".join(lines) + ("# EOF\n" if is_open else "")).encode(), content_type


def _write(lines: list[str], fact: Fact, samples: Iterable[Sample], *, is_open: bool) -> None:
    """A family: OpenMetrics names it without what its samples end with, the older format with it."""
    name, kind = PREFIX + fact.name, fact.kind
    named = name
    if not is_open:
        named += {"counter": "_total", "info": "_info"}.get(kind, "")
        kind = "gauge" if kind == "info" else kind
    lines.append(f"# HELP {named} {fact.help}\n# TYPE {named} {kind}\n")
    for suffix, said, number in samples:
        lines.append(
            f"{name}{suffix}{{{said}}} {float(number)}\n" if said else f"{name}{suffix} {float(number)}\n"
        )


@cache
def _build() -> str:
    return _said([("python", platform.python_version()), ("version", version("tollkeeper"))])


def _said(labels: Iterable[tuple[str, object]]) -> str:
    return ",".join([f'{label}="{str(value).translate(_ESCAPES)}"' for label, value in sorted(labels)])


def _samples(fact: Fact, value: Any, bounds: Sequence[float]) -> Iterator[Sample]:
    if fact.kind == "histogram":
        for label, counts in value.items() if fact.labels else (("", value),):
            if not fact.labels or isinstance(counts, Mapping):  # an older version counted without labels
                yield from _histogram([(name, label) for name in fact.labels], counts, bounds)
        return
    suffix = "_total" if fact.kind == "counter" else ""
    if not fact.labels:
        yield suffix, "", value
    elif isinstance(value, list | tuple):  # an older version counted without labels
        for *labels, number in value:
            yield suffix, _said(zip(fact.labels, labels, strict=True)), number


def _histogram(
    labels: list[tuple[str, object]], counts: Mapping[str, Any], bounds: Sequence[float]
) -> Iterator[Sample]:
    total, said = 0, _said(labels)
    # One string for all of its buckets, since there are many: where the bound goes is found once.
    before, _, behind = _said([*labels, ("le", "\0")]).partition("\0")
    for bound, count in zip([*map(float, bounds), "+Inf"], counts["buckets"], strict=True):
        total += count
        yield "_bucket", f"{before}{bound}{behind}", total
    yield "_count", said, total
    yield "_sum", said, counts["sum"]
