"""Holds by the API: a caller creates one, makes its call elsewhere, and settles the hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from gateway.features.record import Feature

if TYPE_CHECKING:
    from gateway.http.ports import Answerer, Ports


def _handlers() -> Mapping[str, Answerer]:
    from gateway.features.caller_holds import gateway  # of gateways alone
    from gateway.http.routing import routes

    return {
        routes.HOLDS_PATH: gateway.take_hold,
        routes.HOLD_EXTEND_PATH: gateway.extend_hold,
        routes.HOLD_SETTLE_PATH: gateway.settle_hold,
        routes.HOLD_PATH: gateway.release_hold,
        routes.HOLD_ANSWER_PATH: gateway.settle_by_answer,
        routes.AUTHORIZE_PATH: gateway.authorize,
    }


def _log_handlers(ports: Ports) -> Mapping[int, Callable[[bytes], Awaitable[None]]]:
    from gateway.counters.settlement_log.log import DELETION
    from gateway.features.caller_holds.gateway import delete_again

    return {DELETION: partial(delete_again, ports)}


FEATURE = Feature(name="caller_holds", handlers=_handlers, log_handlers=_log_handlers)
