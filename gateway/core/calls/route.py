"""The nouns of the allow-list: what is served, and where it is forwarded to.

Apart from `model.py`, because settings are read straight into these.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.core.model import GENERIC, Family
from gateway.core.upstreams.proxies import Proxies, Proxy


@dataclass(frozen=True, slots=True)
class Route:
    """One entry of the allow-list.

    `path` is a template: `{name}` takes one segment (`{model}` may hold no slash), `{+name}` one or
    more with the slashes between them, a last `{path…}` takes the rest. `service` is a service key, empty
    for a free route; a route whose template holds `{service_key}` takes its service from the path.
    `units_pointer` is a JSON pointer (RFC 6901) to the units in an answer of a generic route, empty for
    none. `queries` are query parameters that pass beside those its family has. `objects` are `owned` by the
    organization whose call made them, or `shared` where each has an upstream account of its own. `models` is
    `unread` where a key with a list of models may call what is metered without reading which one is asked.
    """

    methods: tuple[str, ...]
    path: str
    upstream: str
    service: str = ""
    family: Family = GENERIC
    meter: str = "none"
    on_disconnect: str = "drain"
    settle: str = "before_end"
    trust_client_units: bool = False
    units_pointer: str = ""
    queries: tuple[str, ...] = ()
    usage: str = ""
    objects: str = "owned"
    models: str = ""


@dataclass(frozen=True, slots=True)
class ServiceRules:
    """Where a configuration has calls of `/services/{key}/…` go.

    `upstreams` has the name of an upstream by service key, `paths` the patterns its calls must be within.
    `shared` names the upstream of every service that has none of its own; empty where each must have one.
    `unread` are those that keys with a list of models may call all the same, wherever they go.
    """

    upstreams: tuple[tuple[str, str], ...] = ()
    paths: tuple[tuple[str, tuple[str, ...]], ...] = ()
    shared: str = ""
    unread: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class UpstreamTarget:
    """Where a route is forwarded to. `headers` carry the upstream's own credential.

    `cert_file` and `key_file` are the certificate that it is shown. `limits` says whom it refuses by limits
    of its own: its whole `account`, or the `caller` alone. `proxies` are its own where it names any;
    `via` is the one that connections go through, None where they go straight there. `fields` are numbers in
    bodies that may go there unread.
    """

    name: str
    base_url: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ca_file: str | None = None
    limits: str = "account"
    cert_file: str | None = None
    key_file: str | None = None
    proxies: Proxies | None = None
    via: Proxy | None = None
    fields: frozenset[str] = frozenset()
