"""The run that a call names: judged before it is opened, stored once its call is admitted."""

from __future__ import annotations

from typing import NamedTuple

from gateway.calls.ports import CallPorts
from gateway.calls.prices import prices_of
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.run_policies import CallRunPolicies
from gateway.core.accounts.runs import Run, make_provisional
from gateway.core.calls.call import CallRequest
from gateway.core.calls.tariff import CallPrices
from gateway.core.model import Attribution, Caller, RunRequest, Service


class OpeningRun(NamedTuple):
    """A run that a call names and this worker has not cached, with its caller, request and policies."""

    caller: Caller
    asked: RunRequest
    policies: CallRunPolicies


def run_to_judge(
    ports: CallPorts, caller: Caller, asked: RunRequest | None, policies: CallRunPolicies
) -> tuple[Run | None, OpeningRun | None]:
    """Return the run of a call for its checks, and an `OpeningRun` if this worker has not cached the run.

    Both are None for a call that names none.
    """
    if asked is None:
        return None, None
    cached = ports.runs.cached(caller, asked)
    if cached is not None:
        return cached, None
    return make_provisional(caller, asked, policies), OpeningRun(caller, asked, policies)


async def open_run(
    ports: CallPorts, opening: OpeningRun, service: Service, said: Attribution, call: CallRequest
) -> tuple[Run, CallPrices, CallBudgets | None]:
    """Open or find the run of a checked call; return the run, and the call's prices and budgets.

    `said` is the attribution of the call. If reserving the hold fails afterwards, the run soon expires.
    """
    caller = opening.caller
    run = await ports.runs.find(caller, opening.asked, opening.policies)
    budgets = ports.directory.budgets(caller, service.id, said, call, run=run) if service.id else None
    return run, prices_of(ports, caller, service, call, budgets), budgets


def keep_run(ports: CallPorts, caller: Caller, run: Run | None) -> None:
    """Store the run of an admitted call, if the call has one."""
    if run is not None:
        ports.runs.admitted(caller, run)
