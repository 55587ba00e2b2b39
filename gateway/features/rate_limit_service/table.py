"""The table of `tollkeeper rls`, in a YAML file: which descriptors lead to which accounts.

`${NAME}` is replaced from the environment. A value `{name}` is replaced by the descriptor's entry with this
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from gateway.core.accounts.caller_holds import TOKENS_MAX, TTL_S_MAX
from gateway.core.failures import DELAY_S_MAX
from gateway.errors import SettingError
from gateway.settings.documents import convert_document, parse_yaml, read_file

TABLE_BYTES_MAX: Final = 1 << 20
RULES_MAX: Final = 1_000
ENTRIES_MAX: Final = 16
VALUE_CHARACTERS_MAX: Final = 1_024
METADATA_MAX: Final = 16
ANY: Final = "*"
_BEARER: Final = "bearer "
EntryName = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7a\x7c\x7e]{1,128}\Z")]
Value = Annotated[str, msgspec.Meta(min_length=1, max_length=VALUE_CHARACTERS_MAX)]
Texts = Annotated[dict[Value, Value], msgspec.Meta(max_length=METADATA_MAX)]


class RateLimitRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule for descriptors of a domain with exactly these entries, and the API key of their holds."""

    domain: Value
    entries: Annotated[dict[EntryName, Value], msgspec.Meta(min_length=1, max_length=ENTRIES_MAX)]
    key: Value
    service: Value
    model: Value | Literal[""] = ""
    user: Value | Literal[""] = ""
    unit: Literal["tokens", "units"] = "tokens"
    # the entry with the id of a call, which has two requests: the first takes a hold
    call: EntryName | Literal[""] = ""
    hold: Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)] = 0
    end: EntryName | Literal[""] = ""  # the entry of a call's second request, which settles the hold
    ttl_s: Annotated[int, msgspec.Meta(ge=1, le=TTL_S_MAX)] = 600
    name: Value | Literal[""] = ""
    # rules with these names do not count in the same request
    replaces: Annotated[tuple[Value, ...], msgspec.Meta(max_length=ENTRIES_MAX)] = ()
    quota_mode: bool = False  # over the limit only if all such descriptors are
    # sent to Envoy for a descriptor within its limit
    metadata: Annotated[dict[Value, Value | Texts], msgspec.Meta(max_length=METADATA_MAX)] = {}

    def fits(self, domain: str, entries: Mapping[str, str]) -> bool:
        """Return whether a descriptor matches this rule."""
        return (
            domain == self.domain
            and entries.keys() - {self.end} == self.entries.keys()
            and all(wanted in {ANY, entries[name]} for name, wanted in self.entries.items())
        )

    def fill(self, value: str, entries: Mapping[str, str]) -> str:
        """Return a value of the rule; a value `{name}` stands for the descriptor's entry of that name."""
        name = _entry_of(value)
        return entries[name] if name else value

    def key_of(self, entries: Mapping[str, str]) -> str:
        """Return the API key of the rule. If it is the header `authorization`, the scheme is removed."""
        key = self.fill(self.key, entries)
        return key[len(_BEARER) :] if key[: len(_BEARER)].lower() == _BEARER else key


class RateLimitTls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PEM files of the gRPC port; with `client_ca_file` clients need certificates of that authority."""

    cert_file: Value
    key_file: Value
    client_ca_file: Value | Literal[""] = ""


class RateLimitTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file of `tollkeeper rls`."""

    gateway: Annotated[str, msgspec.Meta(pattern=r"^https?://[\x21-\x7e]{1,512}\Z")]
    rules: Annotated[tuple[RateLimitRule, ...], msgspec.Meta(min_length=1, max_length=RULES_MAX)]
    tls: RateLimitTls | None = None
    on_failure: Literal["deny", "allow"] = "deny"
    on_unknown: Literal["deny", "allow"] = "deny"
    # A gateway delays its answer to a wrong key. A shorter timeout would take that for no answer.
    timeout_s: Annotated[float, msgspec.Meta(ge=2 * DELAY_S_MAX, le=60)] = 2 * DELAY_S_MAX


def read_table(path: Path, environ: Mapping[str, str]) -> RateLimitTable:
    """Parse the file; `SettingError` names the position of a fault."""
    document = parse_yaml(read_file(path, TABLE_BYTES_MAX), str(path))
    table = convert_document(document, environ, RateLimitTable, str(path))
    names = {rule.name for rule in table.rules}
    for number, rule in enumerate(table.rules):
        unknown = next((replace for replace in rule.replaces if replace not in names), "")
        fault = f"replaces: no rule has the name {unknown}" if unknown else _fault(rule)
        if fault:
            raise SettingError(f"{path}: rules[{number}].{fault}")
    return table


def _entry_of(value: str) -> str:
    """Return the name of the entry that a value `{name}` refers to, empty for a plain value."""
    return value[1:-1] if value[:1] == "{" and value[-1:] == "}" else ""


def _fault(rule: RateLimitRule) -> str:
    """Return what is wrong with a rule, naming the field, or ""."""
    for name in ("key", "service", "model", "user"):
        entry = _entry_of(getattr(rule, name))
        if entry and entry not in rule.entries:
            return f"{name}: there is no entry {entry}: expected one of {', '.join(rule.entries)}"
    if not rule.call:
        return "call: is missing, which hold and end are for" if rule.hold or rule.end else ""
    if rule.entries.get(rule.call) != ANY:
        return f'call: expected an entry of any value ("{ANY}"), which has the id of a call'
    if not rule.hold:
        return "hold: is missing: how much a call holds until its end"
    if not rule.end or rule.end in rule.entries:
        return "end: expected the name of one more entry, which the question at the end has"
    return ""
