"""What was charged against what the upstream itself counted, call by call.

`python -m tests.journey.exactness` starts a stack of its own and prints the table.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import plain_http
from tests.journey.apis import DOCUMENTS, STREAMS, Api, Heard, call
from tests.journey.stack import Stack
from tests.waiting import wait_until

AT_ONCE = 16
WARMING = 20  # calls that teach both workers what this upstream's tokens are like
WORDS = "6"
LEFT_MIN, ROUNDS_MAX = 5, 10
ANSWER_S_MAX = 60.0
Noted = dict[str, Any]


@dataclass(frozen=True)
class Compared:
    """Calls of one kind: what was charged, what the upstream counted, what should be charged at least.

    `wrong` are the calls charged otherwise than they should be, `heard` what the clients got.
    """

    calls: int
    charged: int
    counted: int
    expected: int
    wrong: tuple[tuple[Noted, int, int], ...]
    heard: tuple[Heard, ...]

    def __str__(self) -> str:
        if all(heard.status == 502 for heard in self.heard):
            return f"{self.charged} of at most {self.counted}, each a 502 ({self.calls} calls)"
        if self.expected == self.counted:
            return f"{self.charged - self.counted:+d} of {self.counted} ({self.calls} calls)"
        return f"{self.charged - self.expected:+d} of {self.expected} that came ({self.calls} calls)"


def as_counted(noted: Noted) -> int:
    """All that the upstream counted is charged."""
    return int(noted["total"])


def as_it_came(noted: Noted) -> int:
    """Before the first output nothing is charged, then all that came."""
    return int(noted["total"]) if noted["sent"] or noted["complete"] else 0


def by_size(noted: Noted) -> int:
    """The most of an answer without a report: its input is taken for a token for three bytes."""
    if noted["complete"] and noted["reported"]:
        return int(noted["total"])
    return max(int(noted["input"]), -(-int(noted["body_bytes"]) // 3)) + int(noted["total"] - noted["input"])


class Comparison:
    """One tenant without limits, whose calls name a model of their own by which both sides know them."""

    def __init__(self, stack: Stack, api: Api | None = None) -> None:
        self.stack = stack
        self.api = api
        self.model = f"demo-{random.getrandbits(48):x}"
        self.tenant, self.key = stack.tenant(None)
        self._heard: list[Heard] = []
        self._known: set[str] = set()

    def run(self, calls: Iterable[tuple[Api, int | None, dict[str, str]]]) -> None:
        """Make calls (api, event to leave at, what is dictated), many at once."""

        def one(api: Api, leave_at: int | None, demo: dict[str, str]) -> Heard:
            request = api.request(self.key, self.model, demo)
            return call(self.stack.gateway_url, request, leave_at=leave_at, mark=api.mark or b"\0")

        with ThreadPoolExecutor(AT_ONCE) as pool:
            self._heard += pool.map(lambda asked: one(*asked), calls)

    def warm(self, api: Api) -> Heard:
        """Let the gateway learn the model from complete answers, and leave those out of the comparison."""
        self.run([(api, None, {"words": WORDS})] * WARMING)
        self._settled()
        self._known = {noted["request_id"] for noted in self.noted()}
        first = self._heard[0]
        self._heard.clear()
        return first

    def compare(self, should: Callable[[Noted], int], most: Callable[[Noted], int] | None = None) -> Compared:
        """Compare once everything is settled: what a call should be charged as, or at least and at most."""
        self._settled()
        charged = self._charged()
        noted = {one["request_id"]: one for one in self.noted()}
        assert charged.keys() <= noted.keys(), "charged for calls the upstream never had"
        calls = [one for name, one in noted.items() if name not in self._known]
        each = [(one, charged.get(one["request_id"], 0), should(one)) for one in calls]
        return Compared(
            len(calls),
            sum(charge for _, charge, _ in each),
            sum(int(one["total"]) for one in calls),
            sum(expected for _, _, expected in each),
            tuple(one for one in each if not one[2] <= one[1] <= (most or should)(one[0])),
            tuple(self._heard),
        )

    def _settled(self) -> None:
        """Wait until nothing of this tenant is in flight and all of it is in the ledger."""

        def is_settled() -> bool:
            quota = self.stack.quota(self.tenant)
            return quota["tokens_held"] == 0 and sum(self._charged().values()) == quota["tokens_used"]

        wait_until(lambda: all(one["over"] for one in self.noted()), ANSWER_S_MAX)
        wait_until(is_settled, ANSWER_S_MAX)

    def _charged(self) -> dict[str, int]:
        query = (
            "SELECT request_id::text, amount FROM token_ledger "
            f"WHERE tenant_id = {self.tenant} AND transaction_type = 'consume'"
        )
        return {name: int(amount) for name, amount in self.stack.rows(query)}

    def noted(self) -> list[Noted]:
        """What the upstream has counted so far of this comparison's calls."""
        found: list[Noted] = plain_http.get(
            f"{self.stack.upstream_url}/demo/calls", params={"model": self.model}, timeout=ANSWER_S_MAX
        ).json()["calls"]
        return found


def mixed(stack: Stack, calls: int) -> Compared:
    """Calls over all APIs, each with numbers of its own."""
    comparison = Comparison(stack)
    draw = random.Random(7)

    def numbers() -> str:
        parts = [draw.randrange(1, 500) for _ in range(3)]  # of the prompt and of what is written
        return ",".join(map(str, (draw.randrange(1000, 5000), draw.randrange(500, 5000), *parts)))

    comparison.run([(draw.choice(STREAMS + DOCUMENTS), None, {"usage": numbers()}) for _ in range(calls)])
    return comparison.compare(as_counted)


def complete(stack: Stack, api: Api) -> Compared:
    """Answers that come to their end, read to their end."""
    comparison = Comparison(stack)
    comparison.run([(api, None, {"usage": f"{n},{2 * n},3,4,5"}) for n in range(1, 11)])
    return comparison.compare(as_counted)


def leaving(stack: Stack, api: Api) -> Compared:
    """The client hangs up at every event: the answer is read on to its end and charged as reported."""
    comparison = Comparison(stack)
    events = comparison.warm(api).raw.count(api.mark) if api.mark else 0
    demo = {"usage": "70,30,5,6,7", "words": WORDS, "pause_s": "0.03", "delay_s": "0.25"}
    for _ in range(ROUNDS_MAX):  # who leaves while a busy machine has not called the upstream yet is nobody
        comparison.run([(api, at, demo) for at in range(events + 1)] * (1 if api.mark else LEFT_MIN))
        compared = comparison.compare(as_counted)
        if compared.calls >= LEFT_MIN:
            break
    return compared


def dying(stack: Stack, api: Api) -> Compared:
    """The upstream dies after every piece of its answer: what came is charged."""
    comparison = Comparison(stack)
    whole = comparison.warm(api)
    if api.mark:
        ends = [{"cut": str(at)} for at in range(whole.raw.count(api.mark) + 1)]
    else:
        size = len(whole.raw.partition(b"\r\n\r\n")[2])
        ends = [{"cut_bytes": str(at)} for at in range(0, size, 1 + size // 12)]
    comparison.run([(api, None, {"words": WORDS} | end) for end in ends])
    return comparison.compare(as_it_came, by_size)


def table(stack: Stack) -> str:
    """The whole comparison as Markdown."""
    cases: dict[str, Callable[[Stack, Api], Compared]] = {
        "complete": complete, "client hangs up": leaving, "upstream dies": dying,
    }  # fmt: skip
    lines = ["| API | " + " | ".join(cases) + " |", "|---|" + "---:|" * len(cases)]
    for kind, apis in (("JSON", DOCUMENTS), ("stream", STREAMS)):
        for api in apis:
            cells = [str(measure(stack, api)) for measure in cases.values()]
            lines.append(f"| {api.name}, {kind} | " + " | ".join(cells) + " |")
    lines.append(f"\n1,000 mixed calls over all of them: {mixed(stack, 1000)}")
    return "\n".join(lines)


def main() -> None:
    """Print the table, measured on a stack of its own."""
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder) / "data", "--workers", "2")
        try:
            print(table(stack))
        finally:
            stack.stop()


if __name__ == "__main__":
    main()
