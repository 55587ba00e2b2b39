"""The record of a feature, by which it hands its parts over, and the features of this installation.

A feature is a folder of `gateway/features` with a record `FEATURE` in its `feature.py`. A folder that is not
there is a feature that is left out. The core imports no feature: it asks `features()` for their parts.
A record is light. Its functions import what they need, and its parts are named by their places, so a process
loads no part of another.
"""

from __future__ import annotations

import pkgutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer

    from gateway.admin.console.timeline import InvoiceHistory
    from gateway.admin.resources.resource import Action, Resource
    from gateway.cli.admin.commands import ListSource
    from gateway.core.alerts.messages import Delivery
    from gateway.core.calls.routes import Route as CallRoute
    from gateway.http.ports import Answerer, Log, Ports
    from gateway.ops.doctor_redis import Finding
    from gateway.run.keeper_doors import AdminParts, KeeperParts, Routes, Work
    from gateway.settings.settings import Settings
    from persistence.billing.listeners import InvoiceListener
    from persistence.entity import Entity, Verb
    from persistence.ledger.listeners import LedgerListener


def load(place: str) -> Any:
    """Return the value at a place, `module:name`."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def lazy(place: str) -> Callable[..., Any]:
    """Return a function that returns or calls the value at `module:name`, loaded when it is called."""

    def ask(*given: object) -> Any:
        found = load(place)
        return found(*given) if callable(found) else found

    return ask


def commands(*places: str) -> Callable[[typer.Typer], None]:
    """Return a function that adds functions as commands of their own names."""

    def add(app: typer.Typer) -> None:
        for place in places:
            app.command()(load(place))

    return add


def mounts(**places: str) -> Callable[[AdminParts], Routes]:
    """Return a maker of routes whose parts stand at these places, whatever is set."""
    return lambda _: load("gateway.run.keeper_doors:Routes")(
        **{name: load(place) for name, place in places.items()}
    )


async def _no_findings(_: Settings) -> AsyncIterator[Finding]:
    return
    yield  # an iterator that ends at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One feature. `tables`, `settings` and `metrics` are the names that are its own."""

    name: str
    tables: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    # Name, kind, help and labels, as Prometheus has them.
    metrics: tuple[tuple[str, str, str, tuple[str, ...]], ...] = ()
    resources: Callable[[], Sequence[Resource]] = tuple
    # Actions on resources of the core, by the name of the resource; what they do to rows. Files of rows of a
    # resource, or of a report: fields of a `DocumentEndpoint` each.
    actions: Callable[[], Mapping[str, Sequence[Action]]] = dict
    documents: Mapping[str, Sequence[tuple[Any, ...]]] = field(default_factory=dict)
    verbs: Callable[[], Mapping[str, Mapping[str, Verb]]] = dict
    # Rows of the Admin API's resources, by the name of the resource.
    subjects: Callable[[], Mapping[str, Entity]] = dict
    # Fields of a `Screen` of the console.
    screens: tuple[Mapping[str, Any], ...] = ()
    # Whether settings want it: else its screens are not in the menu.
    is_on: Callable[[Settings], bool] = lambda _: True
    # Finds letters of a text that no font of its documents shows, and may take long; None where it sets none.
    missing_glyphs: Callable[[], Callable[[str], str] | None] = lambda: None
    # What the console says of an invoice's life besides.
    invoice_history: Callable[[], Sequence[InvoiceHistory]] = tuple
    # Told of calls, and of final documents, in the transaction that stores or changes them.
    listeners: Callable[[], Sequence[LedgerListener]] = tuple
    invoice_listeners: Callable[[], Sequence[InvoiceListener]] = tuple
    # Adds commands to the program's own, and to those of administration.
    commands: Callable[[typer.Typer], None] = lambda _: None
    admin_commands: Callable[[typer.Typer], None] = lambda _: None
    # Other places from which the command line's lists may be read.
    list_sources: Callable[[], Sequence[ListSource]] = tuple
    # What a keeper's process of the loops does for it; None where settings want nothing.
    work: Callable[[KeeperParts], Work | None] = lambda _: None
    # What it answers at the admin port besides its resources; None where settings want nothing.
    routes: Callable[[AdminParts], Routes | None] = lambda _: None
    # What it answers at the gateway's own port: routes, and who answers each.
    answers: Callable[[Settings, Log], Mapping[CallRoute, Answerer]] = lambda *_: {}
    # Who answers paths that a gateway routes, by path; who goes on with a client by a WebSocket.
    handlers: Callable[[], Mapping[str, Answerer]] = dict
    open_socket: Answerer | None = None
    # Handlers of records that a gateway's settlement log kept, by their kind.
    log_handlers: Callable[[Ports], Mapping[int, Callable[[bytes], Awaitable[None]]]] = lambda _: {}
    # By event, the link that messages to webhooks have.
    links: Callable[[Settings], Mapping[str, Callable[[Delivery], str]]] = lambda _: {}
    # What `tollkeeper doctor` says of it.
    findings: Callable[[Settings], AsyncIterator[Finding]] = _no_findings


def screens_off(settings: Settings) -> frozenset[str]:
    """Return the names of screens of features that no setting wants."""
    return frozenset(one["name"] for each in features() if not each.is_on(settings) for one in each.screens)


def handlers() -> dict[str, Answerer]:
    """Return the answering function of each path that features serve at a gateway."""
    return {path: one for each in features() for path, one in each.handlers().items()}


def log_handlers(ports: Ports) -> dict[int, Callable[[bytes], Awaitable[None]]]:
    """Return the features' handlers of records that the settlement log kept, by the kind of a record."""
    return {kind: one for each in features() for kind, one in each.log_handlers(ports).items()}


def socket_opener() -> Answerer | None:
    """Return the function that goes on with clients by a WebSocket, if a feature has one."""
    return next((each.open_socket for each in features() if each.open_socket is not None), None)


@cache
def features() -> tuple[Feature, ...]:
    """Return every installed feature, by name."""
    package = import_module("gateway.features")
    names = sorted(found.name for found in pkgutil.iter_modules(package.__path__) if found.ispkg)
    return tuple(import_module(f"gateway.features.{name}.feature").FEATURE for name in names)
