"""Settings read again while gateways run: what may change does, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.http_limits import SETTABLE
from gateway.settings.settings import PREFIX, Settings

# Routes and upstreams, and what the data plane asks again for each connection or call.
RENEWABLE = frozenset({
    "routes", "upstreams", "services", "log_level", "usage_tokens_max", *SETTABLE
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
