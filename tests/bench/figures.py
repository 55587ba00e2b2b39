"""The bench's arithmetic and its page: windows in, one table and one picture out. Pure.

A window is one contender in one scene for some seconds. A ratio is the median of the ratios within each
round, so that a slow moment of the machine, which strikes neighbours alike, cancels out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import median

from tests.bench.scenes import HOT, SCENES

DIRECT, OURS, OTHER = "direct", "tollkeeper", "other"
TITLES = {
    "nginx": "nginx",
    "envoy": "Envoy",
    "nginx-lua": "nginx + Lua + Redis",
    "nginx-lua-reading": "nginx + Lua + Redis, which reads the body",
    "litellm": "LiteLLM, a cap in money in Redis",
    OURS: "Tollkeeper",
    OTHER: "the other Tollkeeper",
}
# Columns of the table: the hand-made limiter reads bodies where that is what is compared.
AGAINST: Mapping[str, tuple[str, ...]] = {
    "nginx": ("nginx",),
    "Envoy": ("envoy",),
    "nginx + Lua + Redis": ("nginx-lua", "nginx-lua-reading"),
    "LiteLLM": ("litellm",),
    "the other tree": (OTHER,),
}
LIMITER = AGAINST["nginx + Lua + Redis"]
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"
  font-size="13">
<title>CPU a call beside nginx + Lua + Redis in the same round, which is 1</title>
<rect width="{width}" height="{height}" fill="#fff"/>
"""


@dataclass(frozen=True, slots=True)
class Window:
    """One contender under load once. CPU in seconds, latency in microseconds.

    `behind_cpu_s` is of those that turned entries into rows meanwhile; `load_busy` is the client's core's
    share of time at work, `foreign_cores` how many cores processes outside the bench kept busy.
    """

    contender: str
    scene: str
    round: int
    requests: int
    seconds: float
    errors: int
    p99_us: float
    gateway_cpu_s: float
    redis_cpu_s: float = 0.0
    behind_cpu_s: float = 0.0
    load_busy: float = 0.0
    foreign_cores: float = 0.0

    @property
    def gateway_us(self) -> float:
        """Gateway CPU a call, or an event of a stream, microseconds."""
        return self._us(self.gateway_cpu_s)

    @property
    def redis_us(self) -> float:
        """Redis CPU, the same."""
        return self._us(self.redis_cpu_s)

    @property
    def both_us(self) -> float:
        """Both together."""
        return self.gateway_us + self.redis_us

    def _us(self, cpu_s: float) -> float:
        return 1e6 * cpu_s / self.requests / (HOT[self.scene].events or 1)


@dataclass(slots=True)
class Measured:
    """Everything measured. By contender: latencies of paced calls (µs) by scene, idle memory (MiB) and CPU
    (share of a core), calls answered, and `rows`, the calls found in the database in the end.
    """

    windows: list[Window] = field(default_factory=list)
    paced: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    idle_rss: dict[str, float] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    ready_s: tuple[float, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)

    def lost(self, name: str) -> int:
        """Calls answered and not in the ledger, or in it without a call; 0 is right.

        The client hangs up on the calls in flight when a window ends: they may be in the ledger too.
        """
        more = self.rows[name] - self.answered[name]
        return -more if more < 0 else max(0, more - self.cut[name])

    def of(self, scene: str, *names: str) -> list[Window]:
        """Windows of a scene, of whom of these was there."""
        return [one for one in self.windows if one.scene == scene and one.contender in names]

    @property
    def failed(self) -> bool:
        """Whether anything was left out, answered an error, or lost or doubled a call."""
        errors = any(one.errors for one in self.windows)
        return bool(self.missing) or errors or any(self.lost(name) for name in self.rows)


def paired(
    windows: Sequence[Window], reference: Sequence[Window], value: Callable[[Window], float]
) -> float | None:
    """Median over rounds of `value` relative to the reference's; None without a common round."""
    base = {one.round: value(one) for one in reference}
    ratios = [value(one) / base[one.round] for one in windows if base.get(one.round)]
    return median(ratios) if ratios else None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of all values do not exceed."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(0, rank - 1)]


def as_markdown(
    measured: Measured, about: Mapping[str, object], picture: str, not_here: Mapping[str, str]
) -> str:
    """The picture, the table, what they were measured on, and what was left out."""
    shown = "; ".join(f"{name} {value}" for name, value in about.items())
    head = (
        f"{shown}. Each contender has one worker, pinned to the gateway's core, a Valkey of its own with the "
        "same settings by a socket, and kept connections. Each call has a `traceparent` of its own. Ratios "
        "are medians of the ratios within each round: gateway CPU beside the other's, and *both* are gateway "
        "and Redis together. In brackets is what the other took. CPU is microseconds a call: medians, the "
        "least of any round. Our keeper and PostgreSQL stand still meanwhile, but where rows are written."
    )
    columns = [
        title
        for title, names in AGAINST.items()
        if any(measured.of(one.beside or one.name, *names) for one in SCENES.values())
    ]
    lines = [["", "gateway CPU µs (least)", "Redis CPU µs (least)", *columns, "added at 100/s, p50 / p99 ms"]]
    for name in SCENES:
        if ours := measured.of(name, OURS):
            cells = [_against(measured, name, AGAINST[title]) for title in columns]
            cost = _least(ours, lambda one: one.gateway_us), _least(ours, lambda one: one.redis_us)
            lines.append([SCENES[name].title, *cost, *cells, _added(measured, name, OURS)])
    table = [f"| {' | '.join(cells)} |" for cells in lines]
    table.insert(1, "|---|" + "---:|" * (len(lines[0]) - 1))
    image = f"![CPU a call beside nginx + Lua + Redis]({picture})"
    return "\n\n".join([head, image, "\n".join(table), "\n".join(_notes(measured, not_here))]) + "\n"


def as_picture(measured: Measured) -> str:
    """Gateway and Redis CPU of each scene as bars; what the hand-made limiter took in the same round is 1."""
    bars = [
        (scene.title, gateway, both)
        for name, scene in SCENES.items()
        if (gateway := _share(measured, name, _gateway_us)) and (both := _share(measured, name, _both_us))
    ]
    most = max([1.0, *(both for _, _, both in bars)])
    left, wide, step = 330, 420, 30
    height, one = step * len(bars) + 70, left + wide / most
    parts = [SVG.format(width=left + wide + 70, height=height)]
    for number, (title, gateway, both) in enumerate(bars):
        y, ours, all_ = 20 + step * number, wide * gateway / most, wide * both / most
        parts.append(
            f'<text x="{left - 10}" y="{y + 14}" text-anchor="end">{escape(title)}</text>'
            f'<rect x="{left}" y="{y}" width="{all_:.0f}" height="18" fill="#90b8dd"/>'
            f'<rect x="{left}" y="{y}" width="{ours:.0f}" height="18" fill="#2b6cb0"/>'
            f'<text x="{left + all_ + 6:.0f}" y="{y + 14}">{both:.2f}</text>\n'
        )
    parts.append(
        f'<path d="M{one:.0f} 10V{height - 45}" stroke="#c53030" stroke-dasharray="4 3"/>'
        f'<text x="{left}" y="{height - 22}">Gateway (dark) and Redis (light) CPU; the line is what</text>'
        f'<text x="{left}" y="{height - 6}">nginx + Lua + Redis takes of both in the same round.</text>\n'
        "</svg>\n"
    )
    return "".join(parts)


def _share(measured: Measured, scene: str, value: Callable[[Window], float]) -> float | None:
    """What ours took by `value`, as a part of all the limiter took in the same round."""
    base = {one.round: one.both_us for one in measured.of(SCENES[scene].beside or scene, *LIMITER)}
    found = [value(one) / base[one.round] for one in measured.of(scene, OURS) if base.get(one.round)]
    return median(found) if found else None


def _against(measured: Measured, scene: str, names: Sequence[str]) -> str:
    ours = measured.of(scene, OURS)
    theirs = measured.of(scene if OTHER in names else SCENES[scene].beside or scene, *names)
    ratio = paired(ours, theirs, _gateway_us)
    if ratio is None:
        return "–"
    took = f"{median(map(_gateway_us, theirs)):.1f}"
    if not any(one.redis_us for one in theirs):
        return f"{_times(ratio)} ({took})"
    both = paired(ours, theirs, _both_us)
    return (
        f"{_times(ratio)}, both {_times(both or 0)} ({took} + {median(one.redis_us for one in theirs):.1f})"
    )


def _times(ratio: float) -> str:
    return f"{ratio:.2f} ×" if ratio >= 0.1 else f"{ratio:.2g} ×"


def _least(windows: Sequence[Window], value: Callable[[Window], float]) -> str:
    return f"{median(map(value, windows)):.1f} ({min(map(value, windows)):.1f})"


def _added(measured: Measured, scene: str, name: str) -> str:
    paced, direct = measured.paced.get((name, scene)), measured.paced.get((DIRECT, "ledger"))
    if not paced or not direct:
        return "–"
    return " / ".join(
        f"{(percentile(paced, share) - percentile(direct, share)) / 1000:.2f}" for share in (0.5, 0.99)
    )


def _notes(measured: Measured, not_here: Mapping[str, str]) -> list[str]:
    notes = [
        f"- {TITLES[name]}: {found:,} calls in the ledger of {measured.answered[name]:,} answered; "
        + (f"**{measured.lost(name):,} lost or doubled**" if measured.lost(name) else "none lost or doubled")
        for name, found in measured.rows.items()
    ]
    notes += [
        f"- {TITLES[name]}, scene `{scene}`: **{failed} errors**"
        for scene, name in dict.fromkeys((one.scene, one.contender) for one in measured.windows)
        if (failed := sum(one.errors for one in measured.of(scene, name)))
    ]
    if behind := [1e6 * one.behind_cpu_s / one.requests for one in measured.windows if one.behind_cpu_s]:
        notes.append(
            f"- rows written meanwhile: keeper and PostgreSQL took {median(behind):.1f} µs of CPU a call"
        )
    added = {name: _added(measured, "ledger", name) for name in ("nginx-lua",)}
    notes += [f"- added at 100/s by {TITLES[name]}: {it} ms" for name, it in added.items() if it != "–"]
    if measured.idle:
        shown = ", ".join(f"{name} {100 * share:.2f}" for name, share in measured.idle.items())
        notes.append(f"- while nobody calls, % of a core: {shown}")
    if measured.idle_rss:
        shown = ", ".join(f"{TITLES[name]} {mib:.0f}" for name, mib in measured.idle_rss.items())
        notes.append(f"- memory of an idle worker, MiB: {shown}")
    if measured.ready_s:
        first, second = measured.ready_s
        notes.append(f"- `tollkeeper up`: ready in {second:.1f} s ({first:.1f} s on an empty data directory)")
    if measured.windows:
        foreign = [one.foreign_cores for one in measured.windows]
        notes.append(
            f"- cores that other programs kept busy: {median(foreign):.2f}, {max(foreign):.2f} in the worst "
            f"window; the load core was busy {median(one.load_busy for one in measured.windows):.0%}"
        )
    notes += [f"- left out: {TITLES[name]}: {why}" for name, why in measured.missing.items()]
    return notes + [f"- not here: {what}: {why}" for what, why in not_here.items()]


def _gateway_us(one: Window) -> float:
    return one.gateway_us


def _both_us(one: Window) -> float:
    return one.both_us
