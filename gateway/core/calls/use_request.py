"""The request for a use: its caller, kind and service."""

from __future__ import annotations

from typing import Final

from gateway.core.accounts.runs import FIELD
from gateway.core.accounts.upstream_jobs import HOLD_MS_MAX
from gateway.core.calls.call import CallRequest
from gateway.core.families.objects import ObjectAccess
from gateway.core.model import Attribution, Caller
from gateway.core.times import HOUR_MS
from gateway.core.value import Value

# How long the hold of a usual call may last, for prices that go by the end of a call.
CALL_LIFE_MS: Final = HOUR_MS


class KindOfUse(Value, frozen=True):
    """The differences on purpose between kinds of use.

    Where a key requires a user, `user_field` is the field that names it; where a policy requires a run,
    `run_field`. `life_ms` is how long a hold may last. `is_aimed`: it goes to a target of its model.
    `is_sent`: it is written for its targets, which must speak its API. `is_free`: it takes from no limit but
    requests, so that it needs neither user nor run. `is_called`: it is called from here, so that the circuit
    breaker may refuse it; others wait at their provider, or their caller hears the upstream's refusal. Steps of a
    budget apply to it where it `takes_steps`: its body is sent from here, once for all of it.
    """

    user_field: str = "x-tollkeeper-user"
    run_field: str = FIELD
    life_ms: int = CALL_LIFE_MS
    is_aimed: bool = True
    is_sent: bool = True
    is_free: bool = False
    is_called: bool = True
    takes_steps: bool = False


CALL: Final = KindOfUse(takes_steps=True)
AS_ASKED: Final = KindOfUse()  # a call whose substitute was refused by its API
TURN: Final = KindOfUse()  # of a socket, which was opened for its model
FREE_CALL: Final = KindOfUse("", is_free=True)
AUTHORIZED, FREE_AUTHORIZED = TURN._replace(is_called=False), FREE_CALL._replace(is_called=False)
HOLD: Final = KindOfUse("user", "run", is_sent=False, is_called=False)
LINE: Final = KindOfUse(life_ms=HOLD_MS_MAX, is_aimed=False, is_sent=False, is_called=False)


class UseRequest(Value, frozen=True):
    """A request for a use. Nothing changes it once it is read.

    `id` becomes the id of its hold. `user` is the user it is made for, and `units` are the units that it
    states. `service_key` is its service, empty on a route that charges nothing. `upstream` is the one that
    its route names. `owned` says how its API keeps objects, `listed` is a model that the path of a list
    names. Its service may share paths with those of `overlapping`. If a list allows some models alone, a use
    without a model is refused with the words `without_model`; empty admits it. A body that is sent `once`
    has no second target. `by_path`: its path names the model, in the place of its route. `passed` are the lines of its
    head that its upstream gets.
    """

    kind: KindOfUse
    id: str
    caller: Caller
    user: str
    attribution: Attribution
    call: CallRequest
    service_key: str
    upstream: str = ""
    owned: ObjectAccess | None = None
    without_model: str = ""
    overlapping: tuple[str, ...] = ()
    listed: str = ""
    once: bool = False
    units: int = 1
    by_path: bool = False
    passed: bytes = b""
