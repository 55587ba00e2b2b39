"""How people sign in to the console, as a configuration file has it."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from gateway.core.issuers.issuer import LEEWAY_S, SUBJECT, USUAL_ALGORITHMS, Issuer, may_be_asked
from gateway.core.issuers.sign_in import USUAL_SCOPES, Provider, SignIn
from gateway.core.shown_urls import without_password
from gateway.errors import SettingError
from gateway.settings.issuers import Algorithms, Claim, Leeway, Required, Subjects, Text, check_authority

PROVIDERS_MAX = 16
_AT_CONSOLE = "expected https://host, as browsers reach the console"

Label = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Slug = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]
Scope = Annotated[str, msgspec.Meta(pattern=r"^[\x21\x23-\x5b\x5d-\x7e]{1,128}$")]
Secret = Annotated[str, msgspec.Meta(pattern=r"^[\x20-\x7e]{0,1024}$")]


class WrittenProvider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of `providers`."""

    name: Slug
    issuer: Text
    client_id: Text
    label: Label | Literal[""] = ""
    client_secret: Secret = ""
    client_secret_file: str = ""
    scopes: Annotated[tuple[Scope, ...], msgspec.Meta(min_length=1, max_length=16)] = USUAL_SCOPES
    algorithms: Algorithms = USUAL_ALGORITHMS
    ca_file: str = ""
    leeway_s: Leeway = LEEWAY_S
    subject: Claim = SUBJECT
    subjects: Subjects = {}
    person: Claim | Literal[""] = ""
    require: Required = {}
    end_session: bool = True


class WrittenSignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`sign_in` of a configuration file."""

    console_url: str = ""
    providers: Annotated[tuple[WrittenProvider, ...], msgspec.Meta(max_length=PROVIDERS_MAX)] = ()


def sign_in_of(written: WrittenSignIn) -> SignIn:
    """How people sign in; `SettingError` names the place of what cannot be."""
    if written.console_url or written.providers:
        _check_url(written.console_url)
    names: set[str] = set()
    issuers: set[str] = set()
    for number, one in enumerate(written.providers):
        place = f"sign_in.providers[{number}]"
        if one.name in names or one.issuer in issuers:
            field = "name" if one.name in names else "issuer"
            raise SettingError(f"{place}.{field}: {getattr(one, field)!r} stands here a second time")
        _check(one, place)
        names.add(one.name)
        issuers.add(one.issuer)
    return SignIn(written.console_url.rstrip("/"), tuple(map(_provider, written.providers)))


def _provider(one: WrittenProvider) -> Provider:
    rules = Issuer(
        one.issuer,
        (one.client_id,),
        algorithms=one.algorithms,
        ca_file=one.ca_file,
        leeway_s=one.leeway_s,
        subject=one.subject,
        subjects=tuple(one.subjects.items()),
        user=one.person,
        require=tuple(one.require.items()),
    )
    label = one.label or urlsplit(one.issuer).hostname or one.name
    secret = (one.client_secret, one.client_secret_file)
    return Provider(one.name, label, rules, one.client_id, *secret, one.scopes, one.end_session)


def _check_url(url: str) -> None:
    if not url:
        raise SettingError(f"sign_in.console_url is missing: {_AT_CONSOLE}")
    parts = urlsplit(url)
    if not may_be_asked(url) or parts.path not in {"", "/"} or parts.query:
        raise SettingError(f"sign_in.console_url: {without_password(url)!r} is not valid: {_AT_CONSOLE}")


def _check(one: WrittenProvider, place: str) -> None:
    if not may_be_asked(one.issuer):
        said = "is no https:// address, where its discovery document would be"
        raise SettingError(f"{place}.issuer: {without_password(one.issuer)!r} {said}")
    if one.client_secret and one.client_secret_file:
        raise SettingError(
            f"{place}: client_secret and client_secret_file are both set: expected one of them"
        )
    if "openid" not in one.scopes:
        raise SettingError(f"{place}.scopes: openid is missing, without which nobody is named")
    check_authority(one.ca_file, place)
