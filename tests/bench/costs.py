"""What the cost of a call takes of a gateway's CPU: `python -m tests.bench.costs`.

Of every recorded answer, with the bundled prices: its tokens by kind, its price by the models that
answered and were asked, and the multiplication. Then the same with reading its facts around it. With a
compiled tree in front of PYTHONPATH (`make compile`) it measures that one; it says which it was.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

from gateway.core.accounts.outbox import CallFacts, write_facts
from gateway.core.billing.price_book import PriceBook, cost_nano, read_price
from gateway.core.metering import meter as metering
from gateway.core.metering.meter import Meter
from gateway.core.metering.meters import make_meter
from gateway.core.model import TokenUsage
from gateway.run.bundled_prices import read_bundle
from tests.core.billing.prices import price_row
from tests.recorded.answers import Answer, answers

ROUNDS = 9
CALLS_A_ROUND = 20_000
NOW_MS = datetime(2026, 11, 21, tzinfo=UTC).timestamp() * 1000


def main() -> None:
    """Measure and print."""
    prices = [read_price(price_row(id=number, **row)) for number, row in enumerate(read_bundle().rows)]
    book = PriceBook(prices)
    metered = [read(answer) for answer in answers()]
    kind = "interpreted" if str(metering.__file__).endswith(".py") else "compiled"
    print(
        f"{kind}, {len(prices):,} prices, {len(metered)} answers, {ROUNDS} rounds of {CALLS_A_ROUND:,} calls"
    )
    empty = measure(metered, lambda asked, meter, usage: None)
    for what, step in (
        ("price and cost", lambda asked, meter, usage: cost(book, asked, meter, usage)),
        ("the same, and the facts of the call written", lambda *call: facts(book, *call)),
    ):
        took = [each - min(empty) for each in measure(metered, step)]
        print(f"{what}: {statistics.median(took):.2f} µs a call (best {min(took):.2f})")


def read(answer: Answer) -> tuple[str, Meter, TokenUsage]:
    """An answer as its call has it once it has ended."""
    meter = make_meter(answer.call, 200, answer.content_type)
    meter.feed(answer.body)
    meter.finish()
    return answer.asked, meter, meter.usage()


def cost(book: PriceBook, asked: str, meter: Meter, usage: TokenUsage) -> int | None:
    """As `gateway/http/charge.py` does it."""
    detail = meter.detail
    counts = detail.counts(usage)
    answered = detail.model
    price = book.vector(answered, "USD", NOW_MS) if answered and answered != asked else None
    price = price or book.vector(asked, "USD", NOW_MS)
    return None if price is None else cost_nano(price, counts, detail.tools, detail.service_tier)


def facts(book: PriceBook, asked: str, meter: Meter, usage: TokenUsage) -> bytes:
    """The cost, and all that is written of the call."""
    detail = meter.detail
    return write_facts(CallFacts(
        model=asked, response_model=detail.model, status=200, duration_ms=12, counts=detail.counts(usage),
        total=usage.total, units=1, tools=detail.tools, service_tier=detail.service_tier,
        cost=cost(book, asked, meter, usage), currency="USD", route="/v1/chat/completions",
    ))  # fmt: skip


def measure(
    metered: list[tuple[str, Meter, TokenUsage]], step: Callable[[str, Meter, TokenUsage], object]
) -> list[float]:
    """Microseconds of CPU a call, round by round."""
    times = CALLS_A_ROUND // len(metered)
    found: list[float] = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(times):
            for asked, meter, usage in metered:
                step(asked, meter, usage)
        found.append((time.process_time() - began) * 1e6 / (times * len(metered)))
    return found


if __name__ == "__main__":
    main()
