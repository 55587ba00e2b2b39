"""Types of the values of settings, with what is valid in words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from gateway.core.credentials import EARLIER_MAX

# The roles of processes that include a keeper.
KEEPERS = ("keeper", "all")
# The annotation of secret settings.
IS_SECRET = msgspec.Meta(extra={"secret": True})
# The `description` of a text's type says what is valid, for messages. Settings of `Lines` may have line breaks.
Lines = Annotated[str, msgspec.Meta(description="a text, with line breaks if needed", extra={"lines": True})]


def is_secret(hint: Any) -> bool:
    """Return whether the type of a setting marks it as a secret."""
    return any((meta.extra or {}).get("secret") for meta in metas_of(hint))


def has_lines(hint: Any) -> bool:
    """Return whether a setting of this type may have line breaks."""
    return any((meta.extra or {}).get("lines") for meta in metas_of(hint))


def holds(hint: Any, value: Any) -> bool:
    """Return whether a value keeps the rules of its setting's type that no pattern says."""
    return all(rule(value) for meta in metas_of(hint) if (rule := (meta.extra or {}).get("holds")))


def metas_of(hint: Any) -> list[msgspec.Meta]:
    return [meta for meta in getattr(hint, "__metadata__", ()) if isinstance(meta, msgspec.Meta)]


Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
# How long to keep data: 0 is for ever.
Days = Annotated[int, msgspec.Meta(ge=0, le=36_500)]
Months = Annotated[int, msgspec.Meta(ge=0, le=1_200)]
Reclaim = Literal["charge_observed", "release", "charge_hold"]
# An empty host would be every address, and an empty data directory the current one.
Host = Annotated[
    str, msgspec.Meta(min_length=1, description="an address or name of this machine, such as 127.0.0.1")
]
Folder = Annotated[str, msgspec.Meta(description="the path of a directory")]
DataFolder = Annotated[str, msgspec.Meta(min_length=1, description="the path of a directory")]
FilePath = Annotated[str, msgspec.Meta(description="the path of a file")]
# A secret may be given by a file instead: `<NAME>_FILE`.
Secret = Annotated[str, IS_SECRET]
_TOKEN, _VISIBLE = r"[\x21-\x7e]{16,512}", "16 to 512 visible ASCII characters"
Token = Annotated[str, msgspec.Meta(pattern=rf"^({_TOKEN})?\Z", description=_VISIBLE), IS_SECRET]
# Peppers are separated by a space, which none contains.
EarlierPeppers = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^({_TOKEN}( {_TOKEN}){{0,{EARLIER_MAX - 1}}})?\Z",
        description=f"{_VISIBLE}, up to {EARLIER_MAX} with a space between two",
    ),
    IS_SECRET,
]
Country = Annotated[
    str, msgspec.Meta(pattern=r"^([A-Z]{2})?\Z", description="two letters of ISO 3166, such as DE")
]
Currency = Annotated[
    str, msgspec.Meta(pattern=r"^([A-Z]{3})?\Z", description="three letters of ISO 4217, such as PLN")
]


def _is_address(text: str) -> bool:
    from gateway.core.alerts.messages import is_address  # noqa: PLC0415  # workers have none, and are spared it

    return is_address(text, private=True)


MailAddress = Annotated[str, msgspec.Meta(description="name@example.com", extra={"holds": _is_address})]
