"""Slips: settings that are valid, may even work, and are hardly meant so.

One list, for the start and for `doctor`. No header or proxy is shown: it may have a credential.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from gateway.core.calls.routes import Route, UpstreamTarget
from gateway.core.families.registry import FAMILIES
from gateway.core.model import GENERIC, Family
from gateway.settings.feature_settings import Needs
from gateway.settings.settings import FEATURES, SECONDS, Settings
from gateway.settings.value_types import KEEPERS

# So many times its default, a time in seconds may be meant in milliseconds.
_LONG_TIMES = 100
# Settings that have no effect without another one, and the roles that read them.
_NEEDS: Needs = {
    "smtp_from": ("smtp_url", KEEPERS),
    "smtp_ca_file": ("smtp_url", KEEPERS),
    **{name: needed for kind in FEATURES for name, needed in kind.NEEDS.items()},
}
_OPENED_LATER = ("smtp_ca_file", *(name for kind in FEATURES for name in kind.OPENED_LATER))


def slips(settings: Settings, role: str) -> Iterator[str]:
    """Yield a line for each setting that is hardly meant so in a process of this role."""
    yield from settings.unread
    for check in _CHECKS:
        yield from check(settings, role)


def _called_by(role: str, settings: Settings) -> Sequence[UpstreamTarget]:
    """Return the upstreams that a process of a role calls: a keeper calls none."""
    return () if role == "keeper" else settings.upstreams


def _base_urls(settings: Settings, role: str) -> Iterator[str]:
    """Yield the base URLs that end in what the paths of their calls begin with."""
    names: dict[tuple[str, str], list[str]] = {}
    for target in _called_by(role, settings):
        last = urlsplit(target.base_url).path.rpartition("/")[2]
        if last and any(path.startswith(f"/{last}/") for path in _paths(settings, target)):
            names.setdefault((target.base_url, last), []).append(target.name)
    for (url, last), upstreams in names.items():
        why = (
            f"the base URL {url} ends in /{last}, and so begin the paths of calls: they go to {url}/{last}/…"
        )
        yield f"upstreams {', '.join(upstreams)}: {why}. Leave /{last} out"


def _paths(settings: Settings, target: UpstreamTarget) -> list[str]:
    """Return the paths, or patterns of paths, of calls behind the base URL of an upstream."""
    services = [key for key, name in settings.services.upstreams if name == target.name]
    patterns = [path for key, paths in settings.services.paths if key in services for path in paths]
    paths = patterns + [route.path for route in _routes(settings, target)]
    return [target.path.replace("{path}", path[1:]) for path in paths] if target.path else paths


def _routes(settings: Settings, target: UpstreamTarget) -> list[Route]:
    """Return the routes whose calls may go to an upstream: its own, and those of models in its API."""
    models = any(made.upstream == target.name for model in settings.models for made in model.targets)

    def speaks(family: Family) -> bool:
        return family != GENERIC and (target.family == family or (models and not target.family))

    return [route for route in settings.routes if route.upstream == target.name or speaks(route.family)]


def _credentials(settings: Settings, role: str) -> Iterator[str]:
    """Yield the upstreams whose `authorization` has no scheme, if they speak an API whose keys have one."""
    for target in _called_by(role, settings):
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
    """Yield a sentence for each setting that has no effect without another one."""
    servers, usual = settings.redis_servers, type(settings)()
    if settings.redis_url and servers not in {1, settings.redis_url.rpartition("@")[2].count(",") + 1}:
        why = "it is how many servers `up` starts, where TOLLKEEPER_REDIS_URL is not set"
        yield f"TOLLKEEPER_REDIS_SERVERS={servers} has no effect: {why}"
    for name, (needed, readers) in _NEEDS.items():
        unset = settings.value(needed) == usual.value(needed)
        if role in readers and unset and settings.value(name) != usual.value(name):
            yield f"{_variable(name)} has no effect, since {_variable(needed)} is not set"


def _missing_files(settings: Settings, role: str) -> Iterator[str]:
    """Yield the files that a keeper first opens when it needs them; it starts without."""
    if role not in KEEPERS:
        return
    for name in _OPENED_LATER:
        path = settings.value(name)
        if path and not Path(path).is_file():
            yield f"{_variable(name)}={path!r} is no file: expected the path of one"


def _milliseconds(settings: Settings, role: str) -> Iterator[str]:
    """Yield the times that are so long that milliseconds may be meant, those of upstreams included."""
    values, usual = settings.values(), type(settings)().values()
    times = [(_variable(name), values[name], usual[name]) for name in sorted(SECONDS)]
    for target in _called_by(role, settings):
        for name in ("first_byte_s", "idle_s"):
            own = getattr(target, name) or 0.0
            times.append((f"upstreams.{target.name}.{name}", own, usual[f"upstream_{name}"]))
    for place, seconds, default in times:
        if seconds >= _LONG_TIMES * default:
            reason = f"{place}={seconds:g} is {timedelta(seconds=seconds)} h, where {default:g} s is usual"
            yield f"{reason}: are milliseconds meant?"


_CHECKS: tuple[Callable[[Settings, str], Iterator[str]], ...] = (
    _base_urls, _credentials, _without_effect, _missing_files, _milliseconds,
)  # fmt: skip


def _variable(name: str) -> str:
    return f"TOLLKEEPER_{name.upper()}"
