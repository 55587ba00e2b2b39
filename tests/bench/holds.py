"""What a hold by the API costs: `python -m tests.bench.holds [--compiled build/compiled]`.

One worker on one core, the client on another. Each round takes a hold and settles it; it prints microseconds
of CPU a round, how many rounds one core does in a second by that, and the times of rounds. The last row is
asked by Envoy's rate limit service: `tollkeeper rls` takes and settles, on the core of the worker.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection

import grpc

from tests.bench import stage as staging
from tests.bench.load import ANSWER, PATH
from tests.bench.machine import BenchError, check_running, cpu_s, family, free_port
from tests.bench.scenes import SCENES
from tests.bench.stage import Contender, Stage, python_path
from tests.bench.tollkeeper import tollkeeper
from tests.features.rate_limit_service.test_rate_limit_service import asked, hits

BODY = json.dumps(
    {"model": "gpt-4o-mini", "max_tokens": 60, "messages": [{"role": "user", "content": "hello"}]}
)
HOLD = json.dumps({"service": "chat", "model": "gpt-4o-mini", "max_tokens": 100})
USED = json.dumps({"usage": {"input": 240, "output": 60}})
WARM_UP = 50  # rounds of each connection


def main() -> int:
    """Measure holds by the API, and those of another gateway's calls."""
    parser = staging.parser("holds", __doc__)
    parser.add_argument("--rounds", type=int, default=2_000)
    parser.set_defaults(connections=8)
    options = parser.parse_args()

    def measure(stage: Stage) -> None:
        one = tollkeeper(stage, [SCENES["ledger"]])
        stage.prefer(options.nice)
        kinds = (
            ("take and settle", by_api),
            ("authorize and answer", by_gateway),
            ("rls", _service(stage, one)),
        )
        for name, rounds in kinds:
            times, used_us = _cost(one, rounds, options.connections, options.rounds)
            cuts = statistics.quantiles(times, n=100)
            print(
                f"{name}: {used_us:.0f} µs of CPU a hold, {1e6 / used_us:.0f} holds/s by one core; "
                f"p50 {1e3 * cuts[49]:.1f} ms, p99 {1e3 * cuts[98]:.1f} ms"
            )

    return staging.on_stage("holds", measure, options.compiled)


def by_api(line: HTTPConnection, key: str) -> None:
    """A program takes a hold and says what it used."""
    document = json.loads(_ask(line, key, "/.tollkeeper/holds", HOLD, 201)[1])
    _ask(line, key, f"/.tollkeeper/holds/{document['id']}/settle", USED, 200)


def by_gateway(line: HTTPConnection, key: str) -> None:
    """Another gateway asks whether a call may pass, and tells its answer."""
    id_, _ = _ask(line, key, f"/.tollkeeper/authorize/600{PATH}", BODY, 200)
    _ask(line, key, f"/.tollkeeper/holds/{id_}/answers/200", ANSWER, 200)


def _service(stage: Stage, one: Contender) -> Callable[[HTTPConnection, str], None]:
    """Start `tollkeeper rls`, whose CPU counts as the gateway's; a round asks it over gRPC."""
    port, table = free_port(), stage.folder / "rls.yaml"
    rule = {
        "domain": "api",
        "entries": {"key": "*"},
        "key": "{key}",
        "service": "chat",
        "model": "gpt-4o-mini",
    }
    table.write_text(json.dumps({"gateway": f"http://127.0.0.1:{one.port}", "rules": [rule]}))
    command = [stage.python, "-m", "gateway", "rls", "--config", str(table), "--listen", f"127.0.0.1:{port}"]
    path = python_path(stage.compiled)
    one.gateway += family(stage.start(command, stage.placement.gateway, "rls", port, PYTHONPATH=path).pid)
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    asking = channel.unary_unary("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit")

    def ask(_: HTTPConnection, key: str) -> None:
        if asking(asked({"key": key} | hits(300)), timeout=30)[:2] != b"\x08\x01":
            raise BenchError("the rate limit service refuses")

    return ask


def _ask(line: HTTPConnection, key: str, path: str, body: str, status: int) -> tuple[str, bytes]:
    fields = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    line.request("POST", path, body, fields)
    answer = line.getresponse()
    said = answer.read()
    if answer.status != status:
        raise BenchError(f"{path} answers {answer.status}: {said[:200]!r}")
    return answer.getheader("x-tollkeeper-hold", ""), said


def _cost(one: Contender, rounds, connections: int, count: int) -> tuple[list[float], float]:  # type: ignore[no-untyped-def]  # one of the two above
    """Seconds of each round, and microseconds of the gateway's CPU for one."""
    times, failed, keys = list[float](), list[BaseException](), one.traffic(SCENES["ledger"]).keys

    def run(number: int, many: int, keep: bool) -> None:
        line = HTTPConnection("127.0.0.1", one.port, timeout=30)
        try:
            for _ in range(many):
                began = time.perf_counter()
                rounds(line, keys[number % len(keys)])
                if keep:
                    times.append(time.perf_counter() - began)
        except (OSError, BenchError) as error:
            failed.append(error)
        finally:
            line.close()

    def all_of(many: int, keep: bool) -> None:
        threads = [threading.Thread(target=run, args=(number, many, keep)) for number in range(connections)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        if failed:
            raise BenchError(str(failed[0]))

    all_of(WARM_UP, keep=False)
    before = cpu_s(one.gateway)
    all_of(count // connections, keep=True)
    used = cpu_s(one.gateway) - before
    check_running(one.gateway)
    one.after()
    return times, 1e6 * used / len(times)


if __name__ == "__main__":
    raise SystemExit(main())
