"""The record of a feature, which lists its parts.

A record is light. Its functions import what they need, and its parts are named as `module:name`, so a process
loads no part for another one. This module knows the types of all parts; code that reads a part gets
the records from `gateway/feature.py`, and states the type of the part itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer

    from gateway.admin.console.timeline import InvoiceHistory
    from gateway.admin.resources.resource import Action, Resource
    from gateway.cli.admin.commands import ListSource
    from gateway.core.alerts.events.event import Event
    from gateway.core.alerts.messages import Delivery
    from gateway.core.calls.routes import Route as CallRoute
    from gateway.http.ports import Answerer, Log, Ports
    from gateway.http.server.server import DataPlane
    from gateway.ops.doctor_redis import Finding
    from gateway.run.keeper_parts import AdminParts, KeeperParts, Routes, Work
    from gateway.run.worker_parts import WorkerParts
    from gateway.settings.feature_settings import FeatureSettings
    from gateway.settings.settings import Settings
    from persistence.billing.listeners import InvoiceListener
    from persistence.entity import Entity, Verb
    from persistence.ledger.listeners import LedgerListener
    from persistence.replay import ArchivedCalls


def load(place: str) -> Any:
    """Return the object at `place`, written as `module:name`."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def lazy(place: str) -> Callable[..., Any]:
    """Return a function that, when called, loads the object at `place`, written as `module:name`.

    If the object is a function, it is called with the arguments, and the result returned.
    """

    def ask(*given: object) -> Any:
        part = load(place)
        return part(*given) if callable(part) else part

    return ask


def commands(*places: str) -> Callable[[typer.Typer], None]:
    """Return a function that adds commands to an application, named like the functions at `places`.

    Each place is written as `module:name`.
    """

    def add(app: typer.Typer) -> None:
        for place in places:
            app.command()(load(place))

    return add


def mounts(**places: str) -> Callable[[AdminParts], Routes]:
    """Return a function that makes `Routes` of the objects at `places`, each written as `module:name`.

    The settings make no difference to these routes.
    """
    return lambda _: load("gateway.run.keeper_parts:Routes")(
        **{name: load(place) for name, place in places.items()}
    )


async def _no_findings(_: Settings) -> AsyncIterator[Finding]:
    return
    yield  # an iterator that ends at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One feature. `tables` are the names of those that belong to it; the schema has them."""

    name: str
    tables: tuple[str, ...] = ()
    # Its settings, a struct in its folder; and what `up` sets of them, by name, if its Admin API is at this URL.
    settings: type[FeatureSettings] | None = None
    settings_here: Callable[[Settings, str], Mapping[str, Any]] = lambda *_: {}
    # Name, kind, help and labels for Prometheus.
    metrics: tuple[tuple[str, str, str, tuple[str, ...]], ...] = ()
    resources: Callable[[], Sequence[Resource]] = tuple
    # Actions on resources of the core, by resource; their effects on rows (`verbs`); files of a resource's
    # rows or of a report (`documents`): fields of a `DocumentEndpoint`.
    actions: Callable[[], Mapping[str, Sequence[Action]]] = dict
    documents: Mapping[str, Sequence[tuple[Any, ...]]] = field(default_factory=dict)
    verbs: Callable[[], Mapping[str, Mapping[str, Verb]]] = dict
    # Rows of the Admin API's resources, by the name of the resource.
    subjects: Callable[[], Mapping[str, Entity]] = dict
    # Whether its folder `templates` has pages of the console.
    has_templates: bool = False
    # Fields of a `Screen` of the console.
    screens: tuple[Mapping[str, Any], ...] = ()
    # Whether the settings enable it; otherwise its screens are not in the menu.
    is_on: Callable[[Settings], bool] = lambda _: True
    # Finds letters of a text that no font of its documents has, and may take long; None without documents.
    missing_glyphs: Callable[[], Callable[[str], str] | None] = lambda: None
    # Additional entries in an invoice's history in the console.
    invoice_history: Callable[[], Sequence[InvoiceHistory]] = tuple
    # Listeners to calls and to final documents, in the transaction that stores or changes them.
    listeners: Callable[[], Sequence[LedgerListener]] = tuple
    invoice_listeners: Callable[[], Sequence[InvoiceListener]] = tuple
    # Add commands to the program, and to the administration commands.
    commands: Callable[[typer.Typer], None] = lambda _: None
    admin_commands: Callable[[typer.Typer], None] = lambda _: None
    # Its sections of administration commands, by name. Only a section that is asked for is made.
    admin_sections: Mapping[str, Callable[[], typer.Typer]] = field(default_factory=dict)
    # Add its commands to the section `import`.
    imports: Callable[[typer.Typer], None] = lambda _: None
    # Other sources of the command line's lists.
    list_sources: Callable[[], Sequence[ListSource]] = tuple
    # Whether the settings let it take old calls away from PostgreSQL.
    archives_calls: Callable[[Settings], bool] = lambda _: False
    # Returns what opens an archive at an address, with a function for messages, to read its calls; or None.
    archived_calls: Callable[[], Callable[[str, Callable[[str], object]], ArchivedCalls] | None] = lambda: (
        None
    )
    # Its work in a keeper's process of loops; None if the settings do not enable it.
    work: Callable[[KeeperParts], Work | None] = lambda _: None
    # Its routes at the admin port besides resources; None if the settings do not enable it.
    routes: Callable[[AdminParts], Routes | None] = lambda _: None
    # Its routes at the gateway's port, with their handlers.
    answers: Callable[[Settings, Log], Mapping[CallRoute, Answerer]] = lambda *_: {}
    # Handlers of routed paths, by path.
    handlers: Callable[[], Mapping[str, Answerer]] = dict
    # Fields of `Ports`, made of the parts of a gateway worker; the worker's loops by name.
    ports: Callable[[WorkerParts], Mapping[str, Any]] = lambda _: {}
    worker_loops: Callable[[DataPlane, Ports], Mapping[str, Callable[[], Awaitable[None]]]] = lambda *_: {}
    # Handlers of records in a gateway's settlement log, by kind.
    log_handlers: Callable[[Ports], Mapping[int, Callable[[bytes], Awaitable[None]]]] = lambda _: {}
    # Its events, and the link in messages to webhooks about them.
    events: Callable[[], Sequence[Event]] = tuple
    links: Callable[[Settings], Mapping[str, Callable[[Delivery], str]]] = lambda _: {}
    # Its findings in `tollkeeper doctor`.
    findings: Callable[[Settings], AsyncIterator[Finding]] = _no_findings
