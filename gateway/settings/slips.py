"""Slips: settings that are valid each by itself, and hardly meant so.

What can never work is refused at the start. What may work is a warning, at the start and by `doctor`: `slips` is
the list of these. No value is shown: a header or a proxy may be a credential.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gateway.core.calls.routes import UpstreamTarget
from gateway.core.families.registry import FAMILIES
from gateway.core.model import GENERIC, Family
from gateway.errors import SettingError
from gateway.settings.checking import VARIABLE
from gateway.settings.controls import texts_of
from gateway.settings.proxies import has_scheme, proxy_variables

if TYPE_CHECKING:
    from gateway.settings.config_file import ConfigFile
    from gateway.settings.settings import Settings

# The ports that one process listens on, by role; `all` is `up`.
PORTS = {"serve": ("gateway_port", "ops_port"), "all": ("gateway_port", "admin_port")}
# `$NAME` or `$(NAME)` as a word of its own: what shells and Kubernetes replace, and a configuration file does not.
_NAME_ALONE = re.compile(r"(?<![^\s:/@=])\$\(?[A-Z][A-Z0-9_]+(?![\w$])")
# Settings of a process that have no effect without another one, by the roles that read them.
_NEEDS = {
    "smtp_from": ("smtp_url", "keeper"), "smtp_ca_file": ("smtp_url", "keeper"),
    "usage_feed_url": ("usage_feed", "keeper"), "usage_feed_token": ("usage_feed", "keeper"),
    "agents_settings_file": ("agents", "keeper"), "agents_collector_url": ("agents_keeper_url", "serve"),
}  # fmt: skip


def check_ports(settings: Settings, role: str) -> None:
    """Raise `SettingError` if a process of this role would listen on one port for two purposes."""
    names = PORTS.get(role, ())
    numbers = {getattr(settings, name) for name in names}
    if len(numbers) < len(names) and numbers != {0}:
        said = f"{' and '.join(map(_variable, names))} are both {numbers.pop()}"
        raise SettingError(f"{said}: expected different ports, or 0 for any free one")


def written_slips(
    document: object, place: str, written: ConfigFile | None, environ: Mapping[str, str]
) -> Iterator[str]:
    """Yield the slips in how a configuration file (`document`, read as `written`) and variables are written."""
    for where, text in texts_of(document, place):
        if _NAME_ALONE.search(VARIABLE.sub("", text)):
            said = "has a $ before a name, which is taken as it stands"
            yield f"{where} {said}: write ${{NAME}} for a variable, and $$ for a dollar sign"
    proxies = (
        {f"upstreams.{name}.proxy": one.proxy for name, one in written.upstreams.items()} if written else {}
    )
    for where, text in (proxies | proxy_variables(environ)).items():
        if not has_scheme(text):
            said = "has no scheme and is taken as http://"
            yield f"{where} {said}: begin it with http://, or https:// where the proxy itself speaks TLS"


def slips(settings: Settings, role: str) -> Iterator[str]:
    """Yield a line for each setting that is hardly meant so in a process of this role."""
    yield from settings.unread
    for check in _CHECKS:
        yield from check(settings, role)


def _base_urls(settings: Settings, role: str) -> Iterator[str]:
    """Yield the base URLs that end in what the paths of their calls begin with."""
    names: dict[tuple[str, str], list[str]] = {}
    for target in settings.upstreams if role != "keeper" else ():
        last = urlsplit(target.base_url).path.rpartition("/")[2]
        if last and any(path.startswith(f"/{last}/") for path in _paths(settings, target)):
            names.setdefault((target.base_url, last), []).append(target.name)
    for (url, last), upstreams in names.items():
        said = (
            f"the base URL {url} ends in /{last}, and so begin the paths of calls: they go to {url}/{last}/…"
        )
        yield f"upstreams {', '.join(upstreams)}: {said}. Leave /{last} out"


def _paths(settings: Settings, target: UpstreamTarget) -> list[str]:
    """Return the paths, or patterns of paths, of calls behind the base URL of an upstream."""
    services = [key for key, name in settings.services.upstreams if name == target.name]
    patterns = [path for key, paths in settings.services.paths if key in services for path in paths]
    paths = patterns + [route.path for route in _routes(settings, target)]
    return [target.path.replace("{path}", path[1:]) for path in paths] if target.path else paths


def _routes(settings: Settings, target: UpstreamTarget) -> list[Any]:
    models = any(one.upstream == target.name for model in settings.models for one in model.targets)
    return [
        route
        for route in settings.routes
        if route.upstream == target.name
        or (models and route.family != GENERIC and target.family in {"", route.family})
    ]


def _credentials(settings: Settings, role: str) -> Iterator[str]:
    """Yield the upstreams whose `authorization` has no scheme, if they speak an API whose keys have one."""
    for target in settings.upstreams if role != "keeper" else ():
        fields = (*target.headers, *(field for key in target.keys for field in key))
        if all(name != "authorization" or " " in value for name, value in fields):
            continue
        families = [target.family] if target.family else [route.family for route in _routes(settings, target)]
        family = next((name for name in families if name != GENERIC), None)
        if family is not None:
            name, scheme = FAMILIES[Family(family)].key_field
            place = f"upstreams.{target.name}.headers.authorization"
            yield f"{place} is one word, without a scheme: {family} expects `{name}: {scheme}KEY`"


def _without_effect(settings: Settings, role: str) -> Iterator[str]:
    servers, usual = settings.redis_servers, type(settings)()
    if settings.redis_url and servers not in {1, settings.redis_url.rpartition("@")[2].count(",") + 1}:
        said = "it is how many servers `up` starts, where TOLLKEEPER_REDIS_URL is not set"
        yield f"TOLLKEEPER_REDIS_SERVERS={servers} has no effect: {said}"
    for name, (needed, reader) in _NEEDS.items():
        unset = getattr(settings, needed) == getattr(usual, needed)
        if role in {reader, "all"} and unset and getattr(settings, name) != getattr(usual, name):
            yield f"{_variable(name)} has no effect, since {_variable(needed)} is not set"


def _missing_files(settings: Settings, role: str) -> Iterator[str]:
    """Yield the files that a keeper first opens when it needs them; it starts without."""
    for name in ("smtp_ca_file", "agents_settings_file") if role != "serve" else ():
        path = getattr(settings, name)
        if path and not Path(path).is_file():
            yield f"{_variable(name)}={path!r} is no file: expected the path of one"


_CHECKS: tuple[Callable[[Settings, str], Iterator[str]], ...] = (
    _base_urls, _credentials, _without_effect, _missing_files,
)  # fmt: skip


def open_secrets(settings: Settings) -> Iterator[str]:
    """Yield the files of secrets and keys that every user of this machine may read or change.

    The start does not warn of these: the files of a sidecar in Kubernetes are so on purpose.
    """
    keys = {value for name, value in settings.named().items() if name.endswith("key_file") and value}
    for path in sorted(keys.union(path for _, path in settings.secret_files)):
        with suppress(OSError):
            mode = Path(path).stat().st_mode
            if mode & (stat.S_IROTH | stat.S_IWOTH):
                said = f"every user of this machine may read or change it (mode {stat.S_IMODE(mode):04o})"
                yield f"the file of a secret {path}: {said}: chmod 600"


def _variable(name: str) -> str:
    return f"TOLLKEEPER_{name.upper()}"
