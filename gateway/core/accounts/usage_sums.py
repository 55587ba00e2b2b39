"""The sums of usage reports: how each is read of a call, in Python and in SQL, and where it is shown. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from gateway.core.accounts.outbox import CACHE_READ, CACHE_WRITE, CACHE_WRITE_1H, INPUT, OUTPUT, REASONING


class CallAmounts(NamedTuple):
    """What a call used and cost, as it is stored; `counts` are tokens by kind."""

    counts: Sequence[int]
    tokens: int
    credits: int
    units: int
    cost: int
    is_estimated: bool
    is_unpriced: bool


class UsageSum(NamedTuple):
    """A sum of calls. `read` takes it from a new call, `sql` from a row of `call`: both are the same number.

    `says` describes the field of the report. `on_page` and `in_table` show it in the console, and in the table
    of `tollkeeper usage`.
    """

    name: str
    read: Callable[[CallAmounts], int]
    sql: str
    says: str = ""
    on_page: bool = False
    in_table: bool = False


# In the order of reports.
USAGE_SUMS: Final = (
    UsageSum("requests", lambda _: 1, "1", on_page=True, in_table=True),
    UsageSum("refused", lambda _: 0, "0", on_page=True),
    UsageSum(
        "input", lambda call: call.counts[INPUT], "input",
        "Tokens read, but for what a cache had or was written into one.", on_page=True, in_table=True,
    ),
    UsageSum("cache_read", lambda call: call.counts[CACHE_READ], "cache_read", on_page=True, in_table=True),
    UsageSum(
        "cache_write", lambda call: call.counts[CACHE_WRITE] + call.counts[CACHE_WRITE_1H],
        "cache_write + cache_write_1h", "Of both lifetimes.", on_page=True,
    ),
    UsageSum(
        "cache_write_1h", lambda call: call.counts[CACHE_WRITE_1H], "cache_write_1h",
        "Those of it that are kept for an hour.",
    ),
    UsageSum("output", lambda call: call.counts[OUTPUT], "output", on_page=True, in_table=True),
    UsageSum("reasoning", lambda call: call.counts[REASONING], "reasoning", "Of the output."),
    UsageSum("tokens", lambda call: call.tokens, "tokens", on_page=True, in_table=True),
    UsageSum("credits", lambda call: call.credits, "credits"),
    UsageSum("units", lambda call: call.units, "units"),
    UsageSum("cost", lambda call: call.cost, "coalesce(cost, 0)", on_page=True, in_table=True),
    UsageSum(
        "estimated", lambda call: int(call.is_estimated), "estimated::integer",
        "Calls whose use was counted, not reported.",
    ),
    UsageSum(
        "unpriced", lambda call: int(call.is_unpriced),
        "(unpriced IS NOT NULL OR (cost IS NULL AND tokens > 0))::integer",
        "Calls that used something without a price: a model, or a tool.",
    ),
)  # fmt: skip
SUMS: Final = tuple(each.name for each in USAGE_SUMS)
