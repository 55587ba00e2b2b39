"""`make bench`: Tollkeeper beside its peers in each scene, in one run: a table of ratios and a picture.

All gateways share one core in turn, everything else shares the others, the same for all. Rounds interleave
scenes and contenders, so that a slow minute of the machine strikes them all; there are as many as fit into
`--minutes`. A process that is gone or unpinned, or a window without an answer, ends the run with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import stage as staging
from tests.bench.contenders import LITELLM, NOT_HERE, STARTS, peers_traffic
from tests.bench.figures import DIRECT, OTHER, OURS, TITLES, Measured, as_markdown, as_picture
from tests.bench.load import ANSWER, ask, pace
from tests.bench.machine import BenchError, families_cpu_s, rss_mib
from tests.bench.page import PAGE, check, publish
from tests.bench.scenes import SCENES, Scene
from tests.bench.stage import OUT, Contender, Stage, say, window
from tests.bench.tollkeeper import compile_hot_path, tollkeeper

WARM_S = 1.0
CHECK_S_MAX = 5.0
PACED_RATE = 100.0
PACED = ("ledger", "limits", "money")
PACED_BESIDE = ("nginx-lua",)
# So many times the window: what waited for a keeper that stood still is stored, and PostgreSQL has settled.
QUIET = 1.5
INTERPRETED = "interpreted"


def main() -> int:
    """Run the bench; 0 if everyone asked for was measured, without an error or a lost call."""
    options = _options()
    if options.page:
        check(options.page, "gateway")  # not after all is measured
        options.page.parent.mkdir(parents=True, exist_ok=True)
    OUT.mkdir(parents=True, exist_ok=True)
    measured, about = Measured(), dict[str, object]()

    def measure(stage: Stage) -> None:
        tree = Path.cwd()
        if not options.interpreted:
            stage.compiled = stage.compiled or compile_hot_path(tree, say)
        if options.against == INTERPRETED:
            stage.other = tree
        elif options.against:
            stage.other = compile_hot_path(Path(options.against), say) or Path(options.against).resolve()
        about.update(_about(stage, options))
        scenes = _chosen(options.scenes)
        contenders = _start(stage, scenes, options, measured)
        stage.prefer(options.nice)
        about["rounds"] = _rounds(stage, scenes, contenders, options, measured)
        _idle(contenders, options.idle_seconds, measured)
        for one in contenders:
            if one.rows:
                one.after()  # drained once more
                measured.rows[one.name] = one.rows()
        about["load at the end"] = f"{os.getloadavg()[0]:.1f}"

    if code := staging.on_stage("bench", measure, options.compiled):
        return code
    picture = (options.page or OUT / "bench.md").with_name("bench.svg")
    markdown = as_markdown(measured, about, picture.name, NOT_HERE)
    found = {"about": about, **{name: value for name, value in asdict(measured).items() if name != "paced"}}
    (OUT / "bench.json").write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")
    (OUT / "bench.md").write_text(markdown, encoding="utf-8")
    (OUT / "bench.svg").write_text(as_picture(measured), encoding="utf-8")
    print(markdown)
    say(f"written to {OUT}/bench.json, bench.md and bench.svg")
    if measured.failed:
        return 1
    if options.page and not options.scenes:
        picture.write_text(as_picture(measured), encoding="utf-8")
        publish(options.page, "gateway", markdown)
    return 0


def _options() -> argparse.Namespace:
    parser = staging.parser("bench", __doc__)
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="for rounds; starts and the end are two more"
    )
    parser.add_argument("--rounds", type=int, default=7, help="at most")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one window under load")
    parser.add_argument("--paced-seconds", type=float, default=2.0, help="length of one window at 100/s")
    parser.add_argument("--idle-seconds", type=float, default=20.0, help="length of the window without calls")
    parser.add_argument("--scenes", default="", help="comma-separated, not published: " + ", ".join(SCENES))
    parser.add_argument("--litellm", action="store_true", help="install LiteLLM where it is missing (large)")
    parser.add_argument("--interpreted", action="store_true", help="do not compile our own hot path")
    parser.add_argument(
        "--against", default="", help=f"checkout of another revision beside this one, or: {INTERPRETED}"
    )
    parser.add_argument("--page", type=Path, help=f"page to publish a run on where nothing failed: {PAGE}")
    return parser.parse_args()


def _about(stage: Stage, options: argparse.Namespace) -> dict[str, object]:
    kernel = ".".join(platform.release().split(".")[:2])
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "on": f"{platform.machine()}, {os.cpu_count()} cores, Linux {kernel}",
        "placement": str(stage.placement),
        "window_s": options.seconds,
        "connections": options.connections,
        "our hot path": f"{'compiled' if stage.compiled else INTERPRETED}, on {stage.python}",
        "load at the start": f"{os.getloadavg()[0]:.1f}",
    }


def _chosen(names: str) -> list[Scene]:
    wanted = names.split(",") if names else list(SCENES)
    if unknown := sorted(set(wanted) - set(SCENES)):
        raise BenchError(f"unknown scene {', '.join(unknown)}; known: {', '.join(SCENES)}")
    needed = {SCENES[one].beside for one in wanted}
    return [one for one in SCENES.values() if one.name in wanted or one.name in needed]


def _start(
    stage: Stage, scenes: Sequence[Scene], options: argparse.Namespace, measured: Measured
) -> list[Contender]:
    """Start all who are in these scenes; who cannot be started is left out, which is told."""
    peers = dict.fromkeys(name for scene in scenes for name in scene.peers)
    if not (options.litellm or LITELLM.exists()):
        peers.pop("litellm", None)
    found: list[Contender] = []
    for name in [*peers, OURS, *([OTHER] if stage.other else [])]:
        say(f"starting {TITLES[name]} …")
        try:
            one = STARTS[name](stage) if name in STARTS else tollkeeper(stage, scenes, name)
            for scene in _of(one, scenes):
                _check(one, scene)
        except (BenchError, OSError) as error:
            measured.missing[name] = str(error)
            say(f"  left out: {error}")
            continue
        found.append(one)
        measured.answered[one.name], measured.cut[one.name] = len(_of(one, scenes)), 0
        measured.idle_rss[one.name] = max(map(rss_mib, one.gateway))
        measured.ready_s = one.ready_s if name == OURS else measured.ready_s
    return found


def _of(one: Contender, scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes that a contender is in: ours are in all."""
    return [scene for scene in scenes if one.rows or one.name in scene.peers]


def _check(one: Contender, scene: Scene) -> None:
    """`BenchError` unless it gives the upstream's own answer."""
    one.before(scene)
    deadline = time.monotonic() + CHECK_S_MAX
    status, body = ask(one.port, one.traffic(scene))
    while status != 200 and time.monotonic() < deadline:
        time.sleep(0.2)
        status, body = ask(one.port, one.traffic(scene))
    one.after()
    if status != 200:
        raise BenchError(f"scene {scene.name}: answers {status}: {body[:200].decode(errors='replace')}")
    whole = body.count(b'"delta":{"content"') == scene.events if scene.events else body == ANSWER.encode()
    if not whole and one.name != "litellm":
        raise BenchError(f"scene {scene.name}: changes the upstream's answer")


def _rounds(
    stage: Stage,
    scenes: Sequence[Scene],
    contenders: Sequence[Contender],
    options: argparse.Namespace,
    measured: Measured,
) -> int:
    """Measure whole rounds while there is time for one more; how many. The one before them warms up."""
    ends = time.monotonic() + 60 * options.minutes
    longest = 0.0
    for number in range(options.rounds + 1):
        began = time.monotonic()
        if number > 1 and began + longest > ends:
            return number - 1
        for scene in scenes:
            for one in contenders:
                if scene in _of(one, scenes):
                    _measure(stage, one, scene, number, options, measured)
            if number and scene.name in PACED:
                _pace(stage, scene, contenders, options, measured)
        longest = max(longest, time.monotonic() - began)
    return int(options.rounds)


def _measure(  # noqa: PLR0917  # who is measured in what, and where it is noted
    stage: Stage, one: Contender, scene: Scene, number: int, options: argparse.Namespace, measured: Measured
) -> None:
    seconds = options.seconds if number else WARM_S
    found = window(stage, one, seconds, scene=scene, connections=options.connections, number=number)
    measured.answered[one.name] += found.requests - found.errors
    measured.cut[one.name] += options.connections
    if number:
        measured.windows.append(found)
        say(
            f"round {number}  {scene.name:14} {one.name:18} {found.requests / found.seconds:9,.0f} req/s  "
            f"gateway {found.gateway_us:.1f} µs  Redis {found.redis_us:.1f} µs  p99 {found.p99_us / 1000:.2f}"
            f" ms  {found.errors or 'no'} errors  others {found.foreign_cores:.2f} cores"
        )


def _pace(
    stage: Stage,
    scene: Scene,
    contenders: Sequence[Contender],
    options: argparse.Namespace,
    measured: Measured,
) -> None:
    """Latencies at a low rate of ours, and of those that it is beside, once a round."""
    direct = Contender(DIRECT, stage.upstream_port, peers_traffic)
    beside = [direct, *(one for one in contenders if one.name in PACED_BESIDE)] if scene.peers else []
    for one in (*beside, *(each for each in contenders if each.name == OURS)):
        one.before(scene)
        found = pace(one.port, one.traffic(scene), PACED_RATE, options.paced_seconds)
        one.after()
        measured.paced.setdefault((one.name, scene.name), []).extend(found)
        measured.answered[one.name] = measured.answered.get(one.name, 0) + len(found)


def _idle(contenders: Sequence[Contender], seconds: float, measured: Measured) -> None:
    """CPU of everything that runs while nobody calls, all in the same window."""
    flushing, parts = SCENES["flushing"], dict[str, list[int]]()
    for one in contenders:
        one.before(flushing)
        title = TITLES[one.name]
        parts[title] = one.gateway
        parts |= {f"{title}'s Redis": one.redis_pids} if one.redis_pids else {}
        parts |= {f"{title}'s {name}": [pid] for name, pid in one.behind.items()}
    time.sleep(QUIET * seconds)
    before, began = {name: families_cpu_s(pids) for name, pids in parts.items()}, time.monotonic()
    time.sleep(seconds)
    lasted = time.monotonic() - began
    measured.idle = {name: (families_cpu_s(pids) - before[name]) / lasted for name, pids in parts.items()}


if __name__ == "__main__":
    sys.exit(main())
