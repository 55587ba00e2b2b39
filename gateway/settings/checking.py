"""One setting's value, checked by its type; what is wrong with it, and what would be valid, in words.

A value is shown in an error unless its name says that it is a secret.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.core.alerts.mail import is_address
from gateway.core.billing.stand_ins import WANTED, read_stand_ins
from gateway.core.billing.usage_feed import CODE_CHARS_MAX, USE_CODE
from gateway.core.peppers import EARLIER_MAX
from gateway.core.shown_urls import without_password
from gateway.errors import SettingError
from gateway.settings.origins import ORIGINS_WANTED, origins_of
from gateway.settings.urls import SCHEMES, fault, wanted

SECRET = re.compile(r"token|secret|pepper|password|credential|_key$|^key_", re.IGNORECASE)
# Part of the type of a setting that is a secret.
IS_SECRET = msgspec.Meta(extra={"secret": True})


def is_secret(hint: Any) -> bool:
    """Whether the type of a setting says that it is a secret."""
    return any((meta.extra or {}).get("secret") for meta in _metas(hint))


def checked(said: str, name: str, value: Any, hint: Any) -> Any:
    """The value as its type has it, or `SettingError`; `said` is what the message begins with."""
    try:
        found = msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError as error:
        raise SettingError(f"{said} is not valid: expected {wanted_of(name, hint)}") from error
    if name == "smtp_from" and not is_address(found, private=True):
        raise SettingError(f"{said} is not valid: expected name@example.com")
    if name in SCHEMES and (expected := fault(name, str(found))):
        raise SettingError(f"{said} is not valid: expected {expected}")
    if name == "cors_origins":
        try:
            origins_of(found)
        except ValueError as error:
            raise SettingError(f"{said} is not valid: {error}; expected {ORIGINS_WANTED}") from error
    if name == "price_as":
        try:
            read_stand_ins(found)
        except ValueError as error:
            raise SettingError(f"{said} is not valid: {error}; expected {WANTED}") from error
    return found


def wanted_of(name: str, hint: Any) -> str:
    """What would be valid, in words, from the type itself."""
    if name in SCHEMES:
        return wanted(name)
    meta = next(iter(_metas(hint)), None)
    kind = getattr(hint, "__origin__", hint)
    if meta is not None and meta.pattern is not None:
        if meta.pattern.startswith("^(") and "[" not in meta.pattern:
            return f"one of {', '.join(meta.pattern[2:-2].split('|'))}"
        several = f", up to {EARLIER_MAX} with a space between two" if "( [" in meta.pattern else ""
        return f"16 to 512 visible ASCII characters{several}"
    noun = {int: "a whole number", float: "a number"}.get(kind, "text")
    if meta is None:
        return noun
    low = f"above {meta.gt}" if meta.gt is not None else f"from {meta.ge}"
    unit = " seconds" if name.endswith("_s") else " bytes" if "_bytes_" in name else ""
    return f"{noun} {low} to {meta.le}{unit}"


def unknown(place: str, name: str, value: str, names: tuple[str, ...], prefix: str) -> SettingError:
    """What is said of a setting that there is not: the nearest one, else all."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    spelled = [prefix + (each.upper() if prefix else each) for each in close or names]
    hint = f"did you mean {spelled[0]}?" if close else f"known are {', '.join(spelled)}"
    secret = name if SECRET.search(name) else (close[0] if close else name)
    return SettingError(f"{place}={shown(secret, value)} is not a setting; {hint}")


def shown(name: str, value: Any) -> str:
    """A value as it may stand in a message."""
    if SECRET.search(name):
        return "(hidden)"
    text = without_password(str(value))
    return repr(text if len(text) <= 100 else text[:100] + "…")


def is_service_link(variable: str, text: str) -> bool:
    """Kubernetes puts `<SERVICE>_PORT=tcp://…` and the like into a pod; those are nobody's settings."""
    return bool(
        re.search(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)", variable)
        or (variable.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", text))
    )


def _metas(hint: Any) -> list[msgspec.Meta]:
    return [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, msgspec.Meta)]


def check_together(values: Mapping[str, Any], prefix: str) -> None:
    """`SettingError` for the first of several settings that do not go together."""
    if values.get("readonly_token") and values["readonly_token"] == values.get("admin_token"):
        raise SettingError(
            f"{prefix}READONLY_TOKEN=(hidden) is not valid: expected another one than {prefix}ADMIN_TOKEN"
        )
    if values.get("smtp_url") and not values.get("smtp_from"):
        raise SettingError(f"{prefix}SMTP_FROM is not set: expected name@example.com, whom mails are from")
    feed = values.get("usage_feed", "off")
    if feed != "off" and not values.get("usage_feed_url"):
        raise SettingError(f"{prefix}USAGE_FEED_URL is not set: expected https://host:port, where {feed} is")
    code = values.get("usage_feed_code", USE_CODE)
    if not (code.isprintable() and 1 <= len(code) <= CODE_CHARS_MAX and code == code.strip()):
        said = f"{prefix}USAGE_FEED_CODE={shown('', code)} is not valid"
        raise SettingError(f"{said}: expected 1 to {CODE_CHARS_MAX} characters that can be seen")


def name_of(variable: str, prefix: str) -> str:
    """The setting of a variable; what is not written in capitals is none."""
    name = variable.removeprefix(prefix)
    return name.lower() if name == name.upper() else name
