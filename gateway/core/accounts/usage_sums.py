"""The sums of usage reports: how each is read of a call, in Python and in SQL, and where it is shown. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Final, NamedTuple

from gateway.core.accounts.call_facts import CACHE_READ, CACHE_WRITE_1H, INPUT, OUTPUT, REASONING
from gateway.core.billing.price_book import KINDS

# Positions in the amounts of a call: its tokens by kind come first, as in `CallFacts.counts`.
CACHE_WRITES, TOKENS, CREDITS, UNITS, COST, ESTIMATED, UNPRICED, CALL, NO_REFUSAL, SAVED = range(
    len(KINDS), len(KINDS) + 10
)


class UsageSum(NamedTuple):
    """A sum of calls. `read` is its position in the amounts of a new call, `sql` reads the same of a row of `call`.

    `says` describes the field of the report. `on_page` and `in_table` show it in the console, and in the table
    of `tollkeeper usage`. A sum `in_money` is of nano-units.
    """

    name: str
    read: int
    sql: str
    says: str = ""
    on_page: bool = False
    in_table: bool = False
    in_money: bool = False


# In the order of reports.
USAGE_SUMS: Final = (
    UsageSum("requests", CALL, "1", on_page=True, in_table=True),
    UsageSum("refused", NO_REFUSAL, "0", on_page=True),
    UsageSum(
        "input", INPUT, "input",
        "Tokens read, but for what a cache had or was written into one.", on_page=True, in_table=True,
    ),
    UsageSum("cache_read", CACHE_READ, "cache_read", on_page=True, in_table=True),
    UsageSum(
        "cache_write", CACHE_WRITES,
        "cache_write + cache_write_1h", "Of both lifetimes.", on_page=True,
    ),
    UsageSum(
        "cache_write_1h", CACHE_WRITE_1H, "cache_write_1h",
        "Those of it that are kept for an hour.",
    ),
    UsageSum("output", OUTPUT, "output", on_page=True, in_table=True),
    UsageSum("reasoning", REASONING, "reasoning", "Of the output."),
    UsageSum("tokens", TOKENS, "tokens", on_page=True, in_table=True),
    UsageSum("credits", CREDITS, "credits"),
    UsageSum("units", UNITS, "units"),
    UsageSum("cost", COST, "coalesce(cost, 0)", on_page=True, in_table=True, in_money=True),
    UsageSum(
        "estimated", ESTIMATED, "estimated::integer",
        "Calls whose use was counted, not reported.",
    ),
    UsageSum(
        "unpriced", UNPRICED,
        "(unpriced IS NOT NULL OR (cost IS NULL AND tokens > 0))::integer",
        "Calls that used something without a price: a model, or a tool.",
    ),
    UsageSum(
        "saved", SAVED, "coalesce(saved, 0)",
        "What calls would have cost more as the models they asked for, where steps of budgets sent them as others.",
        in_money=True,
    ),
)  # fmt: skip
MONEY_SUMS: Final = tuple(usage_sum.name for usage_sum in USAGE_SUMS if usage_sum.in_money)
SUMS: Final = tuple(usage_sum.name for usage_sum in USAGE_SUMS)
# Returns all sums of a call, from its amounts.
read_sums: Final[Callable[[Sequence[int]], tuple[int, ...]]] = itemgetter(
    *(usage_sum.read for usage_sum in USAGE_SUMS)
)
