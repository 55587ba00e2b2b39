"""The bench's arithmetic: windows measured in, one row a contender out. Pure.

A window is one contender under load for some seconds. A row holds the medians over a contender's
windows; a ratio is the median of the ratios within each round, so that a slow moment of the
machine, which strikes neighbours alike, cancels out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Window:
    """One contender under load once. CPU in seconds, latency in microseconds.

    `entries` is how many ledger entries appeared in the meantime, None where there is no ledger;
    `behind_cpu_s` is of those that turned entries into rows meanwhile; `load_busy` is the client's core's
    share of time at work, `foreign_cores` how many cores processes outside the bench kept busy.
    """

    contender: str
    round: int
    requests: int
    seconds: float
    errors: int
    p50_us: float
    p99_us: float
    gateway_cpu_s: float
    load_busy: float
    redis_cpu_s: float = 0.0
    behind_cpu_s: float = 0.0
    script_us: float = 0.0
    scripts_per_read: float = 0.0
    requests_per_script: float = 0.0
    entries: int | None = None
    foreign_cores: float = 0.0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def gateway_us(self) -> float:
        """Gateway CPU a request, microseconds."""
        return 1e6 * self.gateway_cpu_s / self.requests

    @property
    def per_core(self) -> float:
        """Requests a second of gateway CPU; 0 without a gateway."""
        return self.requests / self.gateway_cpu_s if self.gateway_cpu_s else 0.0

    @property
    def redis_us(self) -> float:
        """Redis CPU a request, microseconds."""
        return 1e6 * self.redis_cpu_s / self.requests

    @property
    def behind_us(self) -> float:
        """CPU a request of what turned entries into rows meanwhile, microseconds."""
        return 1e6 * self.behind_cpu_s / self.requests


@dataclass(frozen=True, slots=True)
class Row:
    """One contender over all rounds: medians.

    `per_core` is requests for each second of gateway CPU: the rate of a gateway core that is always
    busy, also where the load core gave out first. `spread` is (highest - lowest) / median of the
    rate. `least_*` are those of the quietest window: what disturbs a machine only ever adds to them.
    `added_*` are latencies above the direct call's at a fixed low rate; None: not measured.
    """

    contender: str
    rate: float
    per_core: float
    spread: float
    p50_us: float
    p99_us: float
    gateway_us: float
    least_gateway_us: float
    gateway_busy: float
    load_busy: float
    redis_us: float
    least_redis_us: float
    script_us: float
    scripts_per_read: float
    requests_per_script: float
    errors: int
    entries_per_request: float | None
    foreign_cores: float
    added_p50_us: float | None = None
    added_p99_us: float | None = None
    rss_mib: float | None = None
    partly_p50_us: float | None = None
    partly_p99_us: float | None = None

    def as_json(self) -> dict[str, object]:
        """The row as plain JSON types."""
        return asdict(self)


def row(windows: Sequence[Window]) -> Row:
    """Condense one contender's windows."""
    rates = [one.rate for one in windows]
    counted = [one for one in windows if one.entries is not None]
    return Row(
        contender=windows[0].contender,
        rate=median(rates),
        per_core=_middle(windows, lambda one: one.per_core),
        spread=(max(rates) - min(rates)) / median(rates),
        p50_us=_middle(windows, lambda one: one.p50_us),
        p99_us=_middle(windows, lambda one: one.p99_us),
        gateway_us=_middle(windows, lambda one: one.gateway_us),
        least_gateway_us=min(one.gateway_us for one in windows),
        gateway_busy=_middle(windows, lambda one: one.gateway_cpu_s / one.seconds),
        load_busy=_middle(windows, lambda one: one.load_busy),
        redis_us=_middle(windows, lambda one: one.redis_us),
        least_redis_us=min(one.redis_us for one in windows),
        script_us=_middle(windows, lambda one: one.script_us),
        scripts_per_read=_middle(windows, lambda one: one.scripts_per_read),
        requests_per_script=_middle(windows, lambda one: one.requests_per_script),
        errors=sum(one.errors for one in windows),
        entries_per_request=(
            sum(one.entries or 0 for one in counted) / sum(one.requests for one in counted)
            if counted
            else None
        ),
        foreign_cores=_middle(windows, lambda one: one.foreign_cores),
    )


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


def table(rows: Sequence[Row], titles: dict[str, str]) -> str:
    """Render the rows as a Markdown table; a row with errors is marked."""
    head = [
        "contender", "req/s", "req/s of a full gateway core", "spread", "p50 ms", "p99 ms",
        "gateway CPU µs/req (least)", "Redis CPU µs/req (least)", "both µs/req",
        "scripts µs/req", "scripts a read", "requests a script",
        "ledger entries/req",
        "gateway core", "load core", "p50 / p99 ms at 70 %",
        "added p50 / p99 ms at 100/s", "worker RSS MiB", "foreign cores",
    ]  # fmt: skip
    return _markdown(head, [_cells(one, titles) for one in rows])


def ratios(windows: Sequence[Window], ours: Sequence[str], titles: dict[str, str]) -> str:
    """Render each of our contenders against every other as a Markdown table; empty without ours."""
    names = list(dict.fromkeys(one.contender for one in windows))
    of = {name: [one for one in windows if one.contender == name] for name in names}
    ours = [name for name in ours if name in of]
    head = ["against"]
    for name in ours:
        title = titles.get(name, name)
        head += [f"{title}: req/s", "req/s of a full gateway core", "gateway CPU", "gateway + Redis CPU"]
    lines = []
    for name in names:
        if name in ours:
            continue
        cells = [titles.get(name, name)]
        for mine in ours:
            for value in (_rate, _per_core, _gateway_us, _both_us):
                found = paired(of[mine], of[name], value)
                cells.append("–" if found is None else f"{found:.2f} ×" if found >= 0.1 else f"{found:.2g} ×")
        lines.append(cells)
    return _markdown(head, lines) if ours else ""


def pair(interpreted: Sequence[Window], compiled: Sequence[Window]) -> str:
    """Render one program's windows beside another's, one figure a line, as a Markdown table."""
    rows = row(interpreted), row(compiled)
    lines = [
        ("requests/s", [f"{one.rate:,.0f}" for one in rows], _rate),
        ("requests/s of a full gateway core", [f"{one.per_core:,.0f}" for one in rows], _per_core),
        (
            "gateway CPU a request, µs",
            [f"{one.gateway_us:.1f} ({one.least_gateway_us:.1f})" for one in rows],
            _gateway_us,
        ),
        ("p99 under load, ms", [f"{one.p99_us / 1000:.2f}" for one in rows], lambda one: one.p99_us),
    ]
    return _markdown(
        ["", "interpreted", "compiled", "ratio"],
        [
            *([name, *cells, f"{paired(compiled, interpreted, of) or 0:.2f} ×"] for name, cells, of in lines),
            ["cores that other programs used", *(f"{one.foreign_cores:.2f}" for one in rows), "–"],
        ],
    )


def _rate(one: Window) -> float:
    return one.rate


def _per_core(one: Window) -> float:
    return one.per_core


def _gateway_us(one: Window) -> float:
    return one.gateway_us


def _both_us(one: Window) -> float:
    return one.gateway_us + one.redis_us


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    text = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*text, *("| " + " | ".join(cells) + " |" for cells in lines)]) + "\n"


def _cells(one: Row, titles: dict[str, str]) -> list[str]:
    mark = f" **({one.errors} errors)**" if one.errors else ""
    return [
        titles.get(one.contender, one.contender) + mark,
        f"{one.rate:,.0f}",
        f"{one.per_core:,.0f}" if one.per_core else "–",
        f"{one.spread:.0%}",
        f"{one.p50_us / 1000:.2f}",
        f"{one.p99_us / 1000:.2f}",
        f"{one.gateway_us:,.1f} ({one.least_gateway_us:,.1f})" if one.gateway_us else "–",
        f"{one.redis_us:.1f} ({one.least_redis_us:.1f})" if one.redis_us else "–",
        f"{one.gateway_us + one.redis_us:.1f}" if one.gateway_us else "–",
        f"{one.script_us:.1f}" if one.script_us else "–",
        f"{one.scripts_per_read:.1f}" if one.scripts_per_read else "–",
        f"{one.requests_per_script:.1f}" if one.requests_per_script else "–",
        "–" if one.entries_per_request is None else f"{one.entries_per_request:.3f}",
        f"{one.gateway_busy:.0%}" if one.gateway_us else "–",
        f"{one.load_busy:.0%}",
        _latencies(one.partly_p50_us, one.partly_p99_us),
        _latencies(one.added_p50_us, one.added_p99_us),
        "–" if one.rss_mib is None else f"{one.rss_mib:.0f}",
        f"{one.foreign_cores:.2f}",
    ]


def _latencies(p50_us: float | None, p99_us: float | None) -> str:
    return "–" if p50_us is None or p99_us is None else f"{p50_us / 1000:.2f} / {p99_us / 1000:.2f}"


def _middle(windows: Sequence[Window], value: Callable[[Window], float]) -> float:
    return median(value(one) for one in windows)
