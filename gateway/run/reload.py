"""Settings read anew while gateways run: what may change does, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable

from gateway.settings.settings import PREFIX, Settings

# Routes and upstreams, and what the data plane asks anew for each connection or call.
RENEWABLE = frozenset(
    {
        "routes", "upstreams", "service_upstreams", "service_paths", "log_level",
        "head_s", "body_s", "keep_alive_s", "drain_s",
        "upstream_connect_s", "upstream_first_byte_s", "upstream_idle_s", "upstream_keep_alive_s",
        "head_bytes_max", "head_fields_max", "body_bytes_max", "connections_max",
        "buffered_bytes_max", "buffered_share", "heads_bytes_max",
        "upstream_connections_max", "upstream_connections_share", "upstream_idle_connections_max",
        "usage_tokens_max", "drain_tokens_max", "drain_bytes_max",
    }
)  # fmt: skip


class Renewal:
    """What runs, and how it is read again. `read` raises `SettingError` where anything is wrong."""

    def __init__(self, running: Settings, read: Callable[[], Settings]) -> None:
        self.running = running
        self._read = read

    def renew(self) -> str:
        """Take over what may change and say in words what was done; nothing has changed where it raises."""
        written = self._read()
        names = Settings.__struct_fields__
        differ = [name for name in names if getattr(written, name) != getattr(self.running, name)]
        taken = [name for name in differ if name in RENEWABLE]
        self.running = self.running.with_values(**{name: getattr(written, name) for name in taken})
        left = ", ".join(PREFIX + name.upper() for name in differ if name not in RENEWABLE)
        said = f"{', '.join(taken)} changed" if taken else "nothing changed"
        return said + (f"; a restart is needed for {left}" if left else "")
