"""Checks of settings by their types, with errors that name the fault and what would be valid.

A value is shown in an error unless the setting's name says that it is a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from collections.abc import Collection as AnyCollection
from typing import Any, Literal, get_args, get_origin

import msgspec

from gateway.core.billing.stand_ins import WANTED, read_stand_ins
from gateway.core.network import without_password
from gateway.errors import SettingError
from gateway.settings.origins import ORIGINS_WANTED, origins_of
from gateway.settings.urls import fault, form_of, wanted
from gateway.settings.value_types import has_lines, holds, metas_of


def check_workloads(workloads: AnyCollection[object], values: Mapping[str, Any], begin: str) -> None:
    """Raise `SettingError` if workloads are configured without a CA for client certificates.

    `begin` is the prefix of variables in the message.
    """
    if workloads and not values.get("tls_client_ca_file"):
        place = f"{begin}TLS_CLIENT_CA_FILE is not set, but there are workloads"
        raise SettingError(f"{place}: expected a PEM file of the authorities that sign their certificates")


# Settings with a parser, and the valid values in words.
_READ_BY: Mapping[str, tuple[Callable[[str], object], str]] = {
    "cors_origins": (origins_of, ORIGINS_WANTED), "price_as": (read_stand_ins, WANTED),
}  # fmt: skip
SECRET = re.compile(r"token|secret|pepper|password|credential|_key$|^key_", re.IGNORECASE)


def check_value(source: str, name: str, value: Any, hint: Any) -> Any:
    """Return the value converted to its type. Raise `SettingError` with a message that begins with `source`."""
    if isinstance(value, str) and value != value.strip() and not has_lines(hint):
        right = wanted_of(name, hint)
        raise SettingError(f"{source} is not valid: it begins or ends with a space; expected {right}")
    try:
        converted = msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError as error:
        raise SettingError(f"{source} is not valid: expected {wanted_of(name, hint)}") from error
    if not holds(hint, converted):
        raise SettingError(f"{source} is not valid: expected {wanted_of(name, hint)}")
    form = form_of(hint)
    if form is not None and (expected := fault(form, str(converted))):
        raise SettingError(f"{source} is not valid: expected {expected}")
    if name in _READ_BY:
        read, right = _READ_BY[name]
        try:
            read(converted)
        except ValueError as error:
            raise SettingError(f"{source} is not valid: {error}; expected {right}") from error
    return converted


# The unit of a number, by its setting's name: the first row that is found in it.
_UNITS = (
    (r"_messages_s$", " messages a second"), (r"_s(_max|_an_hour)?$", " seconds"), (r"_bytes_max$", " bytes"),
    (r"_hours$", " hours"), (r"_days$", " days"), (r"_months$", " months"), ("", ""),
)  # fmt: skip


def wanted_of(name: str, hint: Any) -> str:
    """Return the valid values of a setting in words, derived from its type."""
    form = form_of(hint)
    if form is not None:
        return wanted(form)
    if name in _READ_BY:
        return _READ_BY[name][1]
    if hint is bool:
        return "true or false"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    meta = metas_of(hint)[0]
    if meta.description is not None:
        return meta.description
    noun = {int: "a whole number", float: "a number"}[hint.__origin__]
    low = f"from {meta.ge} to" if meta.gt is None else f"above {meta.gt}, at most"
    unit = next(unit for ending, unit in _UNITS if re.search(ending, name))
    return f"{noun} {low} {meta.le}{unit}"


# How many names are suggested for a setting that resembles none.
NEAREST_MAX = 3


def unknown(place: str, name: str, value: str, names: tuple[str, ...], prefix: str) -> SettingError:
    """Return the error for an unknown setting, with the names that it may have meant."""
    from difflib import get_close_matches  # noqa: PLC0415  # where something is misspelt

    plain = name.lower().removeprefix("tollkeeper_")
    if plain in names:
        written = "in capitals" if prefix else "in lower case, without the prefix"
        right = f"did you mean {prefix}{plain.upper() if prefix else plain}? It is written {written}"
        return SettingError(f"{place}={render_value(plain, value)} is not a setting; {right}")
    close = _match_words(name, names) or get_close_matches(name, names, n=1, cutoff=0.6)
    nearest = close or get_close_matches(name, names, n=NEAREST_MAX, cutoff=0.0)
    spelled = [prefix + (name.upper() if prefix else name) for name in nearest]
    hint = f"did you mean {spelled[0]}?"
    if not close:
        hint = f"the nearest are {', '.join(spelled)}, and docs/settings.md has all of them"
    meant = close[0] if close else name
    secret = name if SECRET.search(name) else meant
    return SettingError(f"{place}={render_value(secret, value)} is not a setting; {hint}")


def _match_words(name: str, names: tuple[str, ...]) -> list[str]:
    """Return a list of the best setting in `names` that contains all words of `name`; [] if none does.

    Gateway settings are preferred, then short names.
    """
    words = set(name.split("_"))
    matching = [candidate for candidate in names if words.issubset(candidate.split("_"))]
    return sorted(
        matching, key=lambda candidate: (not candidate.startswith("gateway_"), candidate.count("_"))
    )[:1]


def render_value(name: str, value: Any) -> str:
    if SECRET.search(name):
        return "(hidden)"
    text = without_password(str(value))
    return repr(text if len(text) <= 100 else text[:100] + "…")


def is_service_link(variable: str, text: str) -> bool:
    """Return whether `variable`, with the value `text`, is set by Kubernetes for a service.

    An example is `<SERVICE>_PORT=tcp://…`. Such variables are not settings.
    """
    return bool(
        re.search(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)", variable)
        or (variable.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", text))
    )


def check_together(values: Mapping[str, Any], prefix: str) -> None:
    """Raise `SettingError` for the first combination of settings that is not valid."""
    if values.get("readonly_token") and values["readonly_token"] == values.get("admin_token"):
        raise SettingError(
            f"{prefix}READONLY_TOKEN=(hidden) is not valid: expected another one than {prefix}ADMIN_TOKEN"
        )
    if values.get("smtp_url") and not values.get("smtp_from"):
        raise SettingError(f"{prefix}SMTP_FROM is not set: expected name@example.com, whom mails are from")


# The ports that one process listens on, by role; `all` is `up`.
PORTS = {"serve": ("gateway_port", "ops_port"), "all": ("gateway_port", "admin_port")}


def check_ports(values: Mapping[str, Any], role: str, prefix: str) -> None:
    """Raise `SettingError` if a process of this role would listen on one port for two purposes."""
    names = PORTS.get(role, ())
    numbers = {values[name] for name in names}
    if len(numbers) < len(names) and numbers != {0}:
        reason = f"{' and '.join(prefix + name.upper() for name in names)} are both {numbers.pop()}"
        raise SettingError(f"{reason}: expected different ports, or 0 for any free one")


def name_of(variable: str, prefix: str) -> str:
    """Return a setting's name for an environment variable: without `prefix`, and in lower case.

    A variable with lower-case letters is not converted, so that it is refused as unknown.
    """
    name = variable.removeprefix(prefix)
    return name.lower() if name == name.upper() else variable
