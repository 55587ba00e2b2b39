"""Whether a keeper runs, and whether all that keep or look up credentials do so under the same pepper.

Part of the composition root.
"""

from __future__ import annotations

from collections.abc import Iterator

from gateway.core.peppers import Peppers, peppers_of
from gateway.counters.keeper.presence import KEPT_S, Keeping
from gateway.errors import TollkeeperError
from gateway.ops import hints
from gateway.ops.finding import Finding
from gateway.settings.settings import Settings

_KEEPER, _PEPPER = "keeper", "pepper"
_UNREADABLE = (
    "start the keeper of a newer version if there was one, else let them be rebuilt"
    " (deploy/README.md, TollkeeperLeftAlone)"
)
_NAMES = "TOLLKEEPER_KEY_PEPPER, or TOLLKEEPER_EARLIER_KEY_PEPPERS"


def of_keeper(settings: Settings, role: str, heard: Keeping | None, ran_before: bool) -> Iterator[Finding]:
    """What the keeper that spoke last says; `ran_before` where one has verified this Redis."""
    if heard is None:
        if not ran_before:
            return
        said = f"none was there in the last {KEPT_S} s"
        if role == _KEEPER:
            yield Finding(True, _KEEPER, f"{said}: the one that starts here will be")
            return
        why = "so what is used becomes no rows, and no change is in force"
        yield Finding(False, _KEEPER, f"{said}, {why}: run tollkeeper keeper, or look at its log")
        return
    yield Finding(True, _KEEPER, f"one of version {heard.version} is there")
    if heard.unreadable:
        said = f"accounts in Redis that it cannot read, whose calls are refused: {heard.unreadable}"
        yield Finding(False, _KEEPER, f"{said}; {_UNREADABLE}")
    if not settings.key_pepper:
        return
    ours, theirs = peppers_of(settings).ids, heard.peppers[0]
    if theirs in ours:
        yield Finding(True, _PEPPER, f"{ours[0]}; the keeper's, {theirs}, is taken")
    else:
        said = f"it is {ours[0]}, and the keeper has {theirs}: keys that are made there are unknown here"
        yield Finding(False, _PEPPER, f"{said}; put the keeper's into {_NAMES}")


def of_credentials(url: str, peppers: Peppers) -> Iterator[Finding]:
    """Whether each credential in PostgreSQL is under a pepper that is taken."""
    from persistence.schema.peppers import in_use  # noqa: PLC0415  # heavy to load

    try:
        found = in_use(url)
    except TollkeeperError as error:
        yield Finding(False, _PEPPER, f"{error}; {hints.postgresql(str(error))}")
        return
    current, *earlier = peppers.ids
    for one in found:
        if one.pepper in earlier:
            yield Finding(True, _PEPPER, f"the earlier {one.pepper} is needed for {one}")
        elif one.pepper not in {None, current}:
            said = f"of {one.pepper}, which is not taken: {one}"
            yield Finding(False, _PEPPER, f"{said}: put it into {_NAMES}")
    used = {one.pepper for one in found}
    if None not in used:
        for unused in (each for each in earlier if each not in used):
            yield Finding(True, _PEPPER, f"nothing is of the earlier {unused} any more: it can go")
