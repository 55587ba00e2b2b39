"""Settings read again while gateways run: what may change does, all of it or nothing.

Asked to, everything. By itself, where a file of a secret changes, credentials of upstreams and keys of
workloads alone: nobody has said that the rest of the configuration is ready.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from gateway.core.http_limits import SETTABLE
from gateway.errors import TollkeeperError
from gateway.run.watching import LOOK_S, watch
from gateway.settings.secret_files import OF_KEEPERS
from gateway.settings.settings import PREFIX, SECRETS, Settings

OF_GATEWAYS = tuple(sorted(SECRETS.difference(OF_KEEPERS)))

# Routes and upstreams, and what the data plane asks again for each connection or call.
RENEWABLE = frozenset({
    "routes", "upstreams", "services", "workloads", "issuers", "log_level", "usage_tokens_max",
    "secret_files", "cors_origins", *SETTABLE,
})  # fmt: skip


class Renewal:
    """What runs, and how it is read again. `read` raises `SettingError` where anything is wrong."""

    def __init__(self, running: Settings, read: Callable[[], Settings]) -> None:
        self.running = running
        self._read = read

    def renew(self) -> str:
        """Take over what may change and say in words what was done; nothing has changed where it raises."""
        before, written = self.running.values(), self._read().values()
        differ = {name: value for name, value in written.items() if value != before[name]}
        taken = {name: value for name, value in differ.items() if name in RENEWABLE}
        self.running = self.running.with_values(**taken)
        left = ", ".join(PREFIX + name.upper() for name in differ if name not in RENEWABLE)
        said = f"{', '.join(taken)} changed" if taken else "nothing changed"
        return said + (f"; a restart is needed for {left}" if left else "")

    def renew_credentials(self) -> str:
        """Take over what upstreams are sent as credentials, and say whose changed; empty where none did."""
        written = self._read()
        before, self.running = self.running, with_credentials(self.running, written)
        pairs = zip(before.upstreams, self.running.upstreams, strict=True)
        changed = ", ".join(now.name for then, now in pairs if then != now)
        said = [f"credentials of upstreams changed: {changed}"] if changed else []
        said += ["keys of workloads changed"] if before.workloads != self.running.workloads else []
        kept = [name for name in OF_GATEWAYS if getattr(written, name) != getattr(before, name)]
        left = ", ".join(PREFIX + name.upper() for name in kept)
        return "; ".join([*said, f"a restart is needed for {left}"] if left else said)


def with_credentials(settings: Settings, written: Settings) -> Settings:
    """The same settings, each upstream with its headers, each workload with its key, as others have them."""
    headers = {target.name: target.headers for target in written.upstreams}
    upstreams = (replace(each, headers=headers.get(each.name, each.headers)) for each in settings.upstreams)
    keys = dict(written.workloads)
    workloads = ((uri, keys.get(uri, key)) for uri, key in settings.workloads)
    return settings.with_values(upstreams=tuple(upstreams), workloads=tuple(workloads))


async def watch_credentials(
    now: Renewal,
    taken: Callable[[], Awaitable[None]],
    say: Callable[[str], None],
    warn: Callable[[str], None],
    *,
    look_s: float = LOOK_S,
) -> None:
    """Have credentials in force once their files change, until cancelled; `taken` hands `now.running` on."""

    async def read() -> str:
        try:
            said = now.renew_credentials()
        except TollkeeperError as error:
            return error.message
        if said:
            await taken()
            say(f"files of secrets read again: {said}")
        return ""

    await watch(
        lambda: [path for _, path in now.running.secret_files],
        read,
        lambda why: warn(f"secrets are kept as they were: {why}"),
        look_s=look_s,
    )
