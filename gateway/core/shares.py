"""What many share and one may take of it, wherever that is counted: in a worker or in Redis. Pure."""

from __future__ import annotations


def leaves_others(had: int, more: int, left: int) -> bool:
    """Return whether one user, who `had` so much, may have `more` of a whole of which so much is `left` then.

    Nobody takes more than is then left for all others (the dynamic threshold of Choudhury and Hahne, 1998):
    where a few have much, a newcomer gets some.
    """
    return left >= 0 and (not had or had + more <= left)
