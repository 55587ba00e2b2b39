"""The stage of a bench: its programs on their cores, who is called there, and what a window of calls cost."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import redis

from tests.bench.figures import Window
from tests.bench.load import ANSWER, EVENT, LAST_EVENTS, Traffic, saturate
from tests.bench.machine import (
    BenchError,
    Placement,
    await_port,
    busy_s,
    check_running,
    cpu_s,
    families_cpu_s,
    family,
    free_port,
    install_tools,
    leave_nothing_behind,
    lua_modules,
    prefer,
    quickest_python,
    spawn,
    stop,
)
from tests.bench.scenes import CALLERS, EVENTS, ORGANIZATIONS, SCENES, Scene

PEERS = Path(__file__).parent / "peers"
OUT = Path("build/bench")
CONNECTIONS = 32


@dataclass(slots=True)
class Contender:
    """One running contender.

    `gateway` and `redis_pids` are the process ids whose CPU is its cost, `behind` those that turn its entries
    into rows; `traffic` is who calls it in a scene. `entries` counts ledger entries it has ever appended;
    `before` and `after` are called around its windows; `rows` counts its calls that reached a database,
    `ready_s` how long its first and second start took.
    """

    name: str
    port: int
    traffic: Callable[[Scene], Traffic]
    gateway: list[int] = field(default_factory=list)
    redis_pids: list[int] = field(default_factory=list)
    behind: dict[str, int] = field(default_factory=dict)
    counters: redis.Redis | None = None
    entries: Callable[[], int] = lambda: 0
    before: Callable[[Scene], None] = lambda _: None
    after: Callable[[], None] = lambda: None
    rows: Callable[[], int] | None = None
    ready_s: tuple[float, ...] = ()


@dataclass(slots=True)
class Stage:
    """Where the programs of one run live: folder, cores, what to stop at the end. All of ours are started by
    `python`.

    `compiled` is the copy of our packages whose hot path is compiled; None: everything is interpreted.
    `other` is what is measured beside it: another revision, or this one interpreted.
    """

    folder: Path
    placement: Placement
    say: Callable[[str], None]
    upstream_port: int = 0
    python: str = field(default_factory=quickest_python)
    compiled: Path | None = None
    other: Path | None = None
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, command: list[str], core: int, name: str, port: int, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start a program of the run and wait until its port answers."""
        log = self.folder / f"{name}.out"
        program = spawn(command, core, log, **environment)
        self.programs.append(program)
        await_port(port, program, log)
        time.sleep(0.1)
        return program

    def config(self, template: str, name: str, **values: object) -> Path:
        """Fill a peer's configuration and write it into the run's folder."""
        text = (PEERS / template).read_text(encoding="utf-8")
        fixed = {
            "DIR": self.folder,
            "PEERS": PEERS,
            "NAME": name,
            "MODULES": lua_modules() or "",
            "UPSTREAM": self.upstream_port,
            "CALLERS": CALLERS,
            "ORGANIZATIONS": ORGANIZATIONS,
            "USER": "user root;" if os.geteuid() == 0 else "",
        }
        for word, value in {**fixed, **values}.items():
            text = text.replace(f"@{word}@", str(value))
        path = self.folder / (name + Path(template).suffix)
        path.write_text(text, encoding="utf-8")
        return path

    def nginx(self, template: str, name: str, core: int, **values: object) -> tuple[int, list[int]]:
        """Start one nginx; its port and its processes."""
        port = free_port()
        path = self.config(template, name, PORT=port, **values)
        program = [shutil.which("nginx") or "nginx", "-e", str(self.folder / f"{name}.err"), "-c", str(path)]
        return port, family(self.start(program, core, name, port).pid)

    def upstream(self) -> None:
        """Start the model that all contenders ask."""
        self.upstream_port, _ = self.nginx(
            "upstream.conf", "upstream", self.placement.upstream,
            ANSWER=ANSWER, EVENT=EVENT, LAST=LAST_EVENTS, EVENTS=EVENTS,
        )  # fmt: skip

    def prefer(self, nice: int) -> None:
        """Give this process and every program a priority; 0: they keep theirs."""
        if nice:
            prefer([os.getpid(), *(pid for program in self.programs for pid in family(program.pid))], nice)

    def cpu_s(self) -> float:
        """CPU that this process and every program have used so far, seconds."""
        return families_cpu_s({program.pid for program in self.programs} | {os.getpid()})

    def stop(self) -> None:
        """Stop every program, last started first."""
        for program in reversed(self.programs):
            stop(program)


def python_path(compiled: Path | None) -> str:
    """Our packages, compiled or not, in front of what is there already and of what they need."""
    packages = sysconfig.get_path("purelib")  # for an interpreter that is not this environment's
    there = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*([there] if there else []), str(compiled or Path.cwd()), packages])


def parser(program: str, what: str | None) -> argparse.ArgumentParser:
    """Reads what may be said to each bench of one stage."""
    found = argparse.ArgumentParser(prog=program, description=what)
    found.add_argument("--compiled", type=Path, help="a copy whose hot path is compiled (`make compile`)")
    found.add_argument("--connections", type=int, default=CONNECTIONS, help="calls at a time")
    found.add_argument("--nice", type=int, default=0, help="priority of all programs, -20 (root) to 19")
    return found


def say(line: str) -> None:
    """Progress goes to standard error, tables alone to standard output."""
    print(line, file=sys.stderr, flush=True)


def on_stage(program: str, measure: Callable[[Stage], None], compiled: Path | None = None) -> int:
    """Set a stage with an upstream, measure, and end all of it; 1 where it cannot be done, which is told."""
    leave_nothing_behind()
    with tempfile.TemporaryDirectory(prefix=f"tollkeeper-{program}-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        stage = Stage(folder, Placement.of_this_machine(), say)
        stage.compiled = None if compiled is None else compiled.resolve()
        try:
            install_tools(say)
            os.sched_setaffinity(0, {stage.placement.client})
            stage.upstream()
            measure(stage)
        except BenchError as error:
            say(f"{program}: {error}")
            return 1
        finally:
            stage.stop()
    return 0


def window(
    stage: Stage,
    one: Contender,
    seconds: float,
    *,
    scene: Scene = SCENES["ledger"],
    traffic: Traffic | None = None,
    connections: int = CONNECTIONS,
    number: int = 0,
) -> Window:
    """Load one contender and read every clock before and after.

    `BenchError` with contender, scene and round where a process is gone or may leave its core, and where
    nothing was answered.
    """
    try:
        one.before(scene)
        found = _window(stage, one, seconds, scene, traffic or one.traffic(scene), connections, number)
        one.after()
    except BenchError as error:
        raise BenchError(f"{one.name}, scene {scene.name}, round {number}: {error}") from error
    return found


def _window(  # noqa: PLR0917  # what is loaded, and how it is named
    stage: Stage,
    one: Contender,
    seconds: float,
    scene: Scene,
    traffic: Traffic,
    connections: int,
    number: int,
) -> Window:
    core, behind = stage.placement.client, list(one.behind.values()) if scene.flushing else []

    def clocks() -> Sequence[float]:
        check_running(one.gateway, stage.placement.gateway)
        check_running(one.redis_pids, stage.placement.redis)
        return (
            cpu_s(one.gateway), families_cpu_s(one.redis_pids), families_cpu_s(behind),
            stage.cpu_s(), busy_s(), busy_s(core), time.monotonic(),
        )  # fmt: skip

    before = clocks()
    loaded = saturate(
        one.port, traffic, core=core, connections=connections, seconds=seconds, folder=stage.folder
    )
    gateway, counters, rows, ours, busy, there, lasted = (
        late - early for late, early in zip(clocks(), before, strict=True)
    )
    return Window(
        contender=one.name,
        scene=scene.name,
        round=number,
        requests=loaded.requests,
        seconds=loaded.seconds,
        errors=loaded.errors,
        p99_us=loaded.p99_us,
        gateway_cpu_s=gateway,
        redis_cpu_s=counters,
        behind_cpu_s=rows,
        load_busy=there / lasted,
        foreign_cores=max(0.0, busy - ours) / lasted,
    )
