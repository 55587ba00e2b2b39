"""Issuers of signed tokens as a configuration file has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, TypeAlias

import msgspec

from gateway.core.issuers.issuer import LEEWAY_S, SUBJECT, USUAL_ALGORITHMS, Issuer, may_be_asked
from gateway.core.shown_urls import without_password
from gateway.errors import SettingError
from gateway.settings.tls_files import authority_at

ISSUERS_MAX = 32

Algorithm: TypeAlias = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
Text = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{1,512}$")]
Claim = Annotated[str, msgspec.Meta(pattern=r"^(/([^~/]|~0|~1)+)+$", max_length=256)]
Value = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
# What is said of tokens alike, whether callers or people are named by them.
Algorithms = Annotated[tuple[Algorithm, ...], msgspec.Meta(min_length=1)]
Leeway = Annotated[float, msgspec.Meta(ge=0, le=300)]
Subjects = Annotated[dict[Value, Value], msgspec.Meta(max_length=1_000)]
Required = Annotated[
    dict[Claim, Annotated[tuple[Value, ...], msgspec.Meta(min_length=1, max_length=1_000)]],
    msgspec.Meta(max_length=16),
]


class WrittenIssuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of `issuers`."""

    issuer: Text
    audiences: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1, max_length=16)]
    algorithms: Algorithms = USUAL_ALGORITHMS
    jwks_uri: str = ""
    jwks_file: str = ""
    ca_file: str = ""
    token_file: str = ""
    leeway_s: Leeway = LEEWAY_S
    subject: Claim = SUBJECT
    subjects: Subjects = {}
    user: Claim | Literal[""] = ""
    require: Required = {}


def issuers_of(written: Iterable[WrittenIssuer]) -> tuple[Issuer, ...]:
    """The issuers of a configuration; `SettingError` names the place of what cannot be."""
    found: dict[str, Issuer] = {}
    for number, one in enumerate(written):
        place = f"issuers[{number}]"
        if one.issuer in found:
            raise SettingError(f"{place}.issuer: {without_password(one.issuer)!r} stands here a second time")
        _check(one, place)
        values = msgspec.structs.asdict(one)
        values |= {"subjects": tuple(one.subjects.items()), "require": tuple(one.require.items())}
        found[one.issuer] = Issuer(**values)
    return tuple(found.values())


def _check(one: WrittenIssuer, place: str) -> None:
    if one.jwks_uri and one.jwks_file:
        raise SettingError(f"{place}: jwks_uri and jwks_file are both set: expected one of them")
    if one.jwks_uri and not may_be_asked(one.jwks_uri):
        raise SettingError(f"{place}.jwks_uri: keys come over https:// alone, but for this machine's own")
    if not one.jwks_uri and not one.jwks_file and not may_be_asked(one.issuer):
        said = "is no https:// address, where its discovery document would be: say jwks_uri or jwks_file"
        raise SettingError(f"{place}.issuer: {without_password(one.issuer)!r} {said}")
    check_authority(one.ca_file, place)


def check_authority(ca_file: str, place: str) -> None:
    """`SettingError` where there is a file of an authority that cannot be used."""
    if ca_file:
        authority_at(ca_file, f"{place}.ca_file: {ca_file!r} cannot be used")
