"""Reads settings again while processes run, and applies those that may change, all or nothing.

All settings are applied if the configuration file changes, or on request. If only a file of a secret changes,
only credentials are applied (of upstreams, sign-in providers and proxies, and keys of workloads), because the
other settings may not be ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.core.calls.routes import UpstreamTarget
from gateway.core.http_limits import SETTABLE
from gateway.core.issuers import IdentityProvider
from gateway.core.network import Proxies, Proxy
from gateway.errors import TollkeeperError
from gateway.files import is_same_place
from gateway.settings.settings import (
    KEEPERS_SECRETS,
    OF_KEEPERS,
    PREFIX,
    SECRETS,
    Settings,
    Signature,
    WatchedFiles,
    from_json,
    signature,
)

OF_GATEWAYS = tuple(sorted(SECRETS.difference(OF_KEEPERS)))
# The secrets of a keeper, except the tokens of its own port, which that port reloads by itself.
KEPT_BY_KEEPERS = tuple(sorted(SECRETS.difference({"admin_token", "readonly_token"})))
# Settings whose files are read again for each new connection.
OF_SERVERS = ("redis_url", "database_url", "database_read_url")
# Settings that contain credentials.
_WITH_CREDENTIALS = ("upstreams", "workloads", "issuers", "proxies", "sign_in", *KEEPERS_SECRETS)

# Settings that a gateway applies: routes and upstreams, and what the data plane reads for each connection or
# call.
RENEWABLE = frozenset({
    "routes", "upstreams", "services", "models", "workloads", "issuers", "log_level", "usage_tokens_max",
    "proxies", "secret_files", "cors_origins", *SETTABLE,
})  # fmt: skip
# Settings that a keeper applies.
KEEPERS_RENEWABLE = frozenset({"sign_in", "proxies", "log_level", "secret_files", *KEEPERS_SECRETS})

# The interval for checking files of secrets and certificates.
LOOK_S = 5.0
# The interval for checking the configuration file. It is read once two checks find the same, not half
# written.
CONFIG_LOOK_S = 1.0
# A fault may disappear without a change of the file: a missing file that it names, or prices in Redis.
AGAIN_S = 5.0


@dataclass(slots=True, eq=False)
class Renewal:
    """The running settings, and how they are read again. `read` raises `SettingError` if anything is invalid.

    `takes` are the settings that may change. `secrets` are those whose change is reported as needing a
    restart. `wrong` is why the written settings are not in force; empty if they are.
    """

    running: Settings
    read: Callable[[], Settings]
    takes: frozenset[str] = RENEWABLE
    secrets: Collection[str] = OF_GATEWAYS
    wrong: str = field(default="", init=False)
    # Only one read at a time, so that an older one is not applied last.
    turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def reread(self) -> Settings:
        """Return the settings as written now; raise `TollkeeperError` if any is invalid."""
        return await asyncio.to_thread(self.read)

    def take(self, written: Settings) -> tuple[Collection[str], str]:
        """Apply those of the changed settings that may change at run time.

        Return their names, and a sentence about what changed and what needs a restart.
        """
        before, after = self.running.values(), written.values()
        differ = {name: value for name, value in after.items() if value != before[name]}
        begun = {name for name in KEEPERS_SECRETS if not (before[name] and after[name])}
        taken = {name: value for name, value in differ.items() if name in self.takes - begun}
        self.running = self.running.with_values(**taken)
        others = {*self.takes, *RENEWABLE, *KEEPERS_RENEWABLE} - begun  # settings that other processes apply
        names = [name for name in differ if name not in others and not _asks_again(name, before, after)]
        left = ", ".join(PREFIX + name.upper() for name in names)
        message = f"{', '.join(taken)} changed" if taken else "nothing changed"
        return taken.keys(), message + (f"; a restart is needed for {left}" if left else "")

    def take_credentials(self, written: Settings) -> str:
        """Apply changed credentials; return a sentence about the changes, or ""."""
        before, after = self.running, with_credentials(self.running, written)
        theirs = {name: after.value(name) for name in _WITH_CREDENTIALS if name in self.takes}
        self.running = before.with_values(**theirs)
        said = _said_of(before, self.running)
        then, now = self.running.values(), written.values()
        kept = [name for name in self.secrets if now[name] != then[name] and not _asks_again(name, then, now)]
        left = ", ".join(PREFIX + name.upper() for name in kept)
        return "; ".join([*said, f"a restart is needed for {left}"] if left else said)

    def snapshot(self) -> Mapping[str, Any]:
        return {"configuration_stale": int(bool(self.wrong))}


def _asks_again(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether only the login changed in the URL of a server: the setting `name`, read from a file.

    Such a change needs no restart, since each new connection reads the file.
    """
    files = [[path for named, path in each["secret_files"] if named == name] for each in (before, after)]
    is_read = name in OF_SERVERS and files[0] == files[1] != []
    return is_read and is_same_place(before[name], after[name])


def _said_of(before: Settings, after: Settings) -> list[str]:
    """Return what has changed from one settings to the other, without secrets."""
    pairs = zip(before.upstreams, after.upstreams, strict=True)
    upstreams = ", ".join(now.name for then, now in pairs if then != now)
    people = zip(before.sign_in.providers, after.sign_in.providers, strict=True)
    providers = ", ".join(now.name for then, now in people if then.client_secret != now.client_secret)
    said = [f"credentials of upstreams changed: {upstreams}"] if upstreams else []
    said += [f"credentials of providers of sign-in changed: {providers}"] if providers else []
    ours = [PREFIX + name.upper() for name in KEEPERS_SECRETS if before.value(name) != after.value(name)]
    said += [f"{', '.join(ours)} changed"] if ours else []
    said += ["proxies changed"] if before.proxies != after.proxies and not upstreams else []
    return [*said, "keys of workloads changed"] if before.workloads != after.workloads else said


def with_credentials(settings: Settings, written: Settings) -> Settings:
    """Return `settings` with the credentials of `written`, the settings as they are in the files now.

    Only upstreams, workloads, providers and proxies are concerned. An upstream whose address or own proxy
    differs keeps its present proxy.
    """
    theirs = {target.name: target for target in written.upstreams}
    upstreams = (
        _replace_credentials(upstream, theirs.get(upstream.name, upstream)) for upstream in settings.upstreams
    )
    keys = dict(written.workloads)
    workloads = ((uri, keys.get(uri, key)) for uri, key in settings.workloads)
    issuers = (replace(issuer, proxies=written.proxies) for issuer in settings.issuers)
    people = {provider.name: provider for provider in written.sign_in.providers}
    providers = (
        _replace_secret(provider, people.get(provider.name, provider))
        for provider in settings.sign_in.providers
    )
    providers = (
        replace(provider, issuer=replace(provider.issuer, proxies=written.proxies)) for provider in providers
    )
    ours = {name: written.value(name) for name in KEEPERS_SECRETS if settings.value(name)}
    return settings.with_values(
        **{name: secret for name, secret in ours.items() if secret},
        upstreams=tuple(upstreams), workloads=tuple(workloads), issuers=tuple(issuers),
        proxies=written.proxies, sign_in=replace(settings.sign_in, providers=tuple(providers)),
    )  # fmt: skip


def _replace_secret(running: IdentityProvider, written: IdentityProvider) -> IdentityProvider:
    """Return the `running` provider with the client secret of `written`, the same provider read again.

    If the issuer or client id differs, return it unchanged.
    """
    is_same = (running.issuer.issuer, running.client_id) == (written.issuer.issuer, written.client_id)
    return replace(running, client_secret=written.client_secret) if is_same else running


def _replace_credentials(running: UpstreamTarget, written: UpstreamTarget) -> UpstreamTarget:
    is_same = (running.base_url, _own_proxy(running)) == (written.base_url, _own_proxy(written))
    via, proxies = (written.via, written.proxies) if is_same else (running.via, running.proxies)
    headers, told, keys = written.headers, written.told, written.keys
    return replace(running, headers=headers, told=told, keys=keys, via=via, proxies=proxies)


def _own_proxy(target: UpstreamTarget) -> Proxies | None:
    """Return the proxies that an upstream names, without credentials."""
    own = target.proxies
    return own and replace(own, http=_without_credentials(own.http), https=_without_credentials(own.https))


def _without_credentials(proxy: Proxy | None) -> Proxy | None:
    return proxy and replace(proxy, authorization="")


@dataclass(frozen=True, slots=True)
class SettingsListener:
    """Receives renewed settings: `taken` is called after they are applied; `say` and `warn` report."""

    taken: Callable[[], Awaitable[None]]
    say: Callable[[str], None]
    warn: Callable[[str], None]


async def keep_renewing(
    now: Renewal,
    asked: asyncio.Event,
    listener: SettingsListener,
    *,
    look_s: float = CONFIG_LOOK_S,
    again_s: float = AGAIN_S,
) -> None:
    """Apply the settings again when their file changes, or when `asked` is set, until cancelled.

    `listener` is notified of changes and faults; an invalid file is tried again after `again_s` seconds.
    """
    loop, path = asyncio.get_running_loop(), now.running.config_path
    # The file's signature when it was last applied, when it was last tried, and at the last check.
    taken: Signature = None
    tried: Signature = None
    before: Signature = None
    again = 0.0
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(look_s):
                await asked.wait()
        is_asked = asked.is_set()
        asked.clear()
        found = await asyncio.to_thread(signature, path) if path else None
        is_still, before = found == before, found
        is_new = found not in {taken, tried} or (bool(now.wrong) and loop.time() >= again)
        if is_asked or (path and is_still and is_new):
            if await _apply_settings(now, listener, is_asked=is_asked):
                taken = found
            tried, again = found, loop.time() + again_s


async def _apply_settings(now: Renewal, listener: SettingsListener, *, is_asked: bool) -> bool:
    """Apply the settings as they are in the file now, all or none; return whether they are valid.

    `listener` is notified of changes, and once of each fault, or each time if the user asked (`is_asked`).
    """
    was_wrong = now.wrong
    try:
        async with now.turn:
            changed, said = now.take(await now.reread())
    except TollkeeperError as error:
        now.wrong = error.message
        if is_asked or error.message != was_wrong:
            listener.warn(f"settings are kept as they were: {error.message}")
        return False
    now.wrong = ""
    if changed:
        await listener.taken()
    if is_asked or changed or was_wrong:
        listener.say(f"settings read again: {said}")
    return True


async def watch_credentials(now: Renewal, listener: SettingsListener, *, look_s: float = LOOK_S) -> None:
    """Apply credentials when their files change, until cancelled; report changes and faults to `listener`."""

    async def read() -> str:
        try:
            async with now.turn:
                credentials = now.take_credentials(await now.reread())
        except TollkeeperError as error:
            return error.message
        if credentials:
            await listener.taken()
            listener.say(f"files of secrets read again: {credentials}")
        return ""

    await watch(
        lambda: [path for _, path in now.running.secret_files],
        read,
        lambda why: listener.warn(f"secrets are kept as they were: {why}"),
        look_s=look_s,
    )


class SettingsUpdates:
    """Applies settings from another process; `is_stale` while the last ones are not in force."""

    def __init__(self, take: Callable[[Settings], None], log: Callable[..., None]) -> None:
        self.is_stale = False
        self._take, self._log = take, log

    def hear(self, line: bytes) -> None:
        """Apply the settings in a line, which the sending process has checked."""
        self._guard_renewal(lambda: self._take(from_json(line)))

    def take(self, settings: Settings) -> None:
        self._guard_renewal(lambda: self._take(settings))

    def _guard_renewal(self, take: Callable[[], None]) -> None:
        """Apply renewed settings by `take`; log if they cannot be served."""
        self.is_stale = True
        try:
            take()
        except Exception as error:  # noqa: BLE001  # otherwise the event loop would swallow it
            # The message may contain a credential.
            why = type(error).__name__
            self._log("settings cannot be served by, and are kept as they were", error=why, level="error")
        else:
            self.is_stale = False


async def watch(
    paths: Callable[[], Iterable[str]],
    read: Callable[[], Awaitable[str]],
    warn: Callable[[str], None],
    *,
    look_s: float = LOOK_S,
) -> None:
    """Call `read` when files change, until cancelled; `read` returns why it failed, or "".

    A file that could not be read is tried again at each check, since its rights may change. A reason is
    passed to `warn` once.
    """
    watched, warned = WatchedFiles(), ""
    while True:
        if await asyncio.to_thread(watched.changed, [*paths()]):
            why = await read()
            if why:
                watched.forget()
                if why != warned:
                    warn(why)
            warned = why
        await asyncio.sleep(look_s)
