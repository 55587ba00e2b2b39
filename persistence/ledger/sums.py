"""Sums that stop no flush: what is beyond a column's largest number is stored as that number, and stays it.

Pure. Such a row says "so much or more": nothing is taken out of it again, and no invariant speaks of it.
"""

# The largest number of a bigint; the smallest one is as far from 0.
SUM_MAX = 2**63 - 1


def bounded(number: int, most: int = SUM_MAX) -> int:
    """A sum as its column holds it."""
    return max(-most, min(number, most))


def added(column: str) -> str:
    """The SQL that adds what a conflicting row `excluded` brings to the row `u`."""
    mine, more = f"u.{column}", f"excluded.{column}"
    return (
        f"CASE WHEN abs({mine}) = {SUM_MAX} THEN {mine} WHEN abs({more}) = {SUM_MAX} THEN {more}"
        f" WHEN {more} > 0 AND {mine} > {SUM_MAX} - {more} THEN {SUM_MAX}"
        f" WHEN {more} < 0 AND {mine} < -{SUM_MAX} - {more} THEN -{SUM_MAX} ELSE {mine} + {more} END"
    )
