"""The bench's hold on the machine: cores, CPU clocks, ports and what has to be installed.

Everything measured is read from /proc; every contender is pinned by the same placement.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CPU_CLOCK = 2  # of Linux' clocks of a process: what the scheduler gave it (clock_getcpuclockid)
START_S_MAX = 180.0  # LiteLLM takes a minute where others use the machine
# Where below /usr Debian puts what the limiter in Lua loads, by package.
LUA_LIBRARIES = {"lua-nginx-redis": "share/lua/5.1/nginx/redis.lua", "lua-cjson": "lib/*/lua/5.1/cjson.so"}
PACKAGES = ("wrk", "nginx", "libnginx-mod-http-lua", *LUA_LIBRARIES)
PYTHON_TURNS = 8
LOOP = """
import time
began = time.process_time()
sizes = {}
for number in range(400_000):
    word = b"%d" % number
    sizes[len(word)] = sizes.get(len(word), 0) + 1
print(time.process_time() - began)
"""


class BenchError(Exception):
    """The bench cannot go on, or not with this contender; the message says why."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Which core each part runs on; the same for every contender."""

    gateway: int
    client: int
    upstream: int
    redis: int
    rest: int

    @classmethod
    def of_this_machine(cls) -> Placement:
        """Spread over what there is: the gateway has a core to itself in every case."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise BenchError("the bench needs two cores: one for the gateway, one for everything else")
        if len(cores) == 2:
            return cls(cores[0], cores[1], cores[1], cores[1], cores[1])
        if len(cores) == 3:
            return cls(cores[0], cores[1], cores[1], cores[2], cores[1])
        return cls(cores[0], cores[1], cores[2], cores[3], cores[-1])

    def __str__(self) -> str:
        """One line for the report."""
        return (
            f"gateway core {self.gateway}; client core {self.client}; upstream core {self.upstream}; "
            f"Redis core {self.redis}"
        )


def spawn(command: Sequence[str], core: int, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start a program pinned to one core, its output in `log`, in a process group of its own."""
    with log.open("ab") as out:
        return subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes], patience_s: float = 20.0) -> None:
    """End a program this bench started, and its whole group if it does not listen."""
    if process.poll() is None:
        process.terminate()
        signal_all(family(process.pid), signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def leave_nothing_behind() -> None:
    """Let SIGTERM end a bench as an error does: its programs are stopped first."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def pin(pids: Iterable[int], core: int) -> None:
    """Move running processes, every thread of them, to one core."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), {core})


def prefer(pids: Iterable[int], nice: int) -> None:
    """Give processes a priority that also counts between sessions, which the kernel weighs as groups."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, nice)
            Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int(_stat(int(entry.name))[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found.extend(children.get(one, ()))
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time the processes, and children of theirs that ended, have used so far, seconds.

    `BenchError` where one is gone: nothing says what it used.
    """
    return sum(map(_cpu_s, pids))


def families_cpu_s(pids: Iterable[int]) -> float:
    """The same with all their descendants, which may come and go: what those used is their parents' then."""
    roots = set(pids)
    found = cpu_s(roots)
    for pid in {one for root in roots for one in family(root)} - roots:
        with contextlib.suppress(BenchError):
            found += _cpu_s(pid)
    return found


def check_running(pids: Iterable[int], core: int | None = None) -> None:
    """`BenchError` where a process is gone, so that another one may answer in its place, or has a thread that
    may leave its core.
    """
    for pid in pids:
        _cpu_s(pid)
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                if core is not None and (there := os.sched_getaffinity(int(task.name))) != {core}:
                    raise BenchError(f"process {pid} may run on cores {sorted(there)}, not on {core} alone")


def _cpu_s(pid: int) -> float:
    """By the process' own clock where it can be read: ticks are a hundredth of a second."""
    try:
        stat = _stat(pid)
    except OSError:
        stat = ["X"]
    if stat[0] in "ZX":
        raise BenchError(f"process {pid} is gone")
    try:
        own = time.clock_gettime((~pid << 3) | CPU_CLOCK)
    except OSError:
        own = sum(map(int, stat[11:13])) * TICK_S
    return own + sum(map(int, stat[13:15])) * TICK_S


def busy_s(core: int | None = None) -> float:
    """Time one core, or all of them together, was not idle since the machine's start, seconds."""
    label = "cpu " if core is None else f"cpu{core} "
    line = next(one for one in Path("/proc/stat").read_text("ascii").splitlines() if one.startswith(label))
    user, nice, system, _idle, _wait, interrupt, soft = map(int, line.split()[1:8])
    return (user + nice + system + interrupt + soft) * TICK_S


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes of this bench; those already gone are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def rss_mib(pid: int) -> float:
    """Resident memory of one process, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat behind the command's name, state first."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()


def free_port() -> int:
    """A TCP port nobody uses at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def await_port(
    port: int, process: subprocess.Popen[bytes], log: Path, patience_s: float = START_S_MAX
) -> None:
    """Wait until the port answers; `BenchError` with the log's end if the program gives up before."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as line:
            if line.getsockname() != line.getpeername():  # a port nobody listens on may be lent to its caller
                return
        time.sleep(0.05)
    tail = log.read_text(encoding="utf-8", errors="replace")[-800:].strip() if log.exists() else ""
    raise BenchError(f"{Path(str(process.args[3])).name} does not answer on its port: {tail}")  # type: ignore[index]  # our own command lines are lists


def install_tools(say: Callable[[str], None]) -> None:
    """Install wrk and Debian's nginx with Lua where they are missing."""
    missing = [name for name in ("wrk", "nginx") if shutil.which(name) is None]
    if lua_modules() is None:
        missing.append("nginx's Lua module")
    missing += [name for name, place in LUA_LIBRARIES.items() if not any(Path("/usr").glob(place))]
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise BenchError(
            f"missing: {', '.join(missing)}. Install {' '.join(PACKAGES)} (Debian's names) and run again; "
            "the bench installs them itself only as root on Debian or Ubuntu"
        )
    say(f"installing {' '.join(PACKAGES)} …")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
    done = subprocess.run(install, env=environment, capture_output=True, check=False)
    if done.returncode:
        subprocess.run(["apt-get", "update", "-qq"], env=environment, capture_output=True, check=False)
        done = subprocess.run(install, env=environment, capture_output=True, check=False)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise BenchError(f"cannot install {' '.join(PACKAGES)}: {' '.join(last)}")


def lua_modules() -> Path | None:
    """Where nginx's Lua modules are, if they are."""
    for folder in (Path("/usr/lib/nginx/modules"), Path("/usr/share/nginx/modules")):
        if (folder / "ngx_http_lua_module.so").exists():
            return folder
    return None


@cache
def quickest_python() -> str:
    """The quicker of our interpreter and the system's own of the same version, which starts all programs.

    Official builds of Python, the image's among them, are optimized by profile and at link time;
    one built by hand often is not, and costs a fifth more a request.
    """
    system = shutil.which(f"python{sys.version_info.major}.{sys.version_info.minor}", path="/usr/bin")
    found = [sys.executable, *([system] if system else [])]
    took_s = [(_loop_s(one), one) for _ in range(PYTHON_TURNS) for one in found]  # a slow second strikes both
    return min(took_s)[1]


def _loop_s(python: str) -> float:
    done = subprocess.run([python, "-I", "-c", LOOP], capture_output=True, text=True, check=True)
    return float(done.stdout)


def python_package(
    folder: Path, package: str, program: str, say: Callable[[str], None], python: str = sys.executable
) -> Path:
    """Path of a program of a Python package, installed for an interpreter into an environment of its own if
    missing.
    """
    path = folder / "bin" / program
    if path.exists():
        return path
    say(f"installing {package} into {folder.name}/ …")
    for command in (
        [python, "-m", "venv", "--without-pip", str(folder)],
        [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet", package],
    ):
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise BenchError(f"cannot install {package}: {' '.join(last)}")
    return path
