"""Checks of settings by their types, with errors that name the fault and what would be valid.

A value is shown in an error unless the setting's name says that it is a secret. A configuration file is YAML
without duplicate keys, and each error names its place. Its values are not shown, since a header of an
upstream may be a credential; only a word that is no valid choice is.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Collection as AnyCollection
from enum import Enum
from itertools import islice
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from gateway.core.billing.stand_ins import WANTED, read_stand_ins
from gateway.core.credentials import EARLIER_MAX, TlsFiles
from gateway.core.network import without_password
from gateway.errors import SettingError
from gateway.files import read_regular, require_regular
from gateway.settings.controls import refuse_controls, texts_of

T = TypeVar("T")

# The default code of our events for meters and billable metrics.
USAGE_FEED_CODE = "tollkeeper_use"
USAGE_FEED_CODE_CHARS_MAX = 128

# Usable schemes of URLs of databases, a mail server and other services.

_OF_POSTGRES = ("postgres", "postgresql", "postgresql+psycopg")
SCHEMES = {
    "redis_url": (
        "redis",
        "redis+cluster",
        "redis+sentinel",
        "redis+shards",
        "rediss",
        "rediss+cluster",
        "rediss+sentinel",
        "rediss+shards",
        "unix",
    ),
    "database_url": _OF_POSTGRES,
    "database_owner_url": _OF_POSTGRES,
    "database_read_url": _OF_POSTGRES,
    "smtp_url": ("smtp", "smtps"),
    "stripe_api_url": ("https", "http"),
    "usage_feed_url": ("https", "http", "file"),
    "console_url": ("https", "http"),
    "agents_keeper_url": ("https", "http"),
    "agents_collector_url": ("https", "http"),
}
_SHAPES = {
    "redis_url": "redis://user:password@host:port/database",
    "smtp_url": "smtp://user:password@host:port",
    "stripe_api_url": "https://host:port",
    "usage_feed_url": "https://host:port",
    "console_url": "https://host:port",
    "agents_keeper_url": "https://host:port",
    "agents_collector_url": "https://host:port",
}
PORT_MAX = 65_535
# The port: the text after a host that is no IPv6 address, or after the brackets of one.
_PORT = re.compile(r"(?:^[^:]*|\]):(.*)$")
_FAULT = re.compile(r"(?P<said>.*?)(?: - at (?P<key>`key` in )?`\$(?P<place>.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+)\]|\[\.\.\.\]")
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<otherwise>[^}]*))?\})")
_NOUNS = {
    "object": "a mapping", "array": "a list", "str": "text", "int": "a whole number", "bool": "true or false",
    "null": "nothing", "float": "a number",
}  # fmt: skip


def wanted(name: str) -> str:
    """Return the valid beginnings of a setting's URL, in words."""
    return "a URL beginning with " + " or ".join(f"{each}://" for each in SCHEMES[name])


def fault(name: str, url: str) -> str:
    """Return what would be right if the URL of a setting is wrong; empty if it is usable.

    For a URL of Redis with several hosts, or a socket, only the scheme is checked here: the Redis client
    parses the rest.
    """
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES[name] or "://" not in url:
        return wanted(name)
    if scheme.endswith(("+sentinel", "+cluster", "+shards")) or scheme == "unix":
        return ""
    shape = _SHAPES.get(name, "postgresql://user:password@host:port/database")
    escaped = "with @ : / ? # % of a user or password written as %40 %3A %2F %3F %23 %25"
    if scheme in _OF_POSTGRES:
        url = _with_one_host(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return f"{shape}, with a port from 1 to {PORT_MAX}, and {escaped}"
    if port == 0:
        return f"a port from 1 to {PORT_MAX}"
    database = parts.path.strip("/")
    if name == "redis_url" and (not host or not (database or "0").isdecimal()):
        return f"{shape}, the database being a number, {escaped}"
    if name == "redis_url" and (parts.query or parts.fragment):
        return f"{shape}, and nothing behind it, {escaped}"
    behind = database or parts.query or parts.fragment
    if name == "smtp_url" and (not host or behind):
        return f"{shape}, and nothing behind it, {escaped}"
    if name.startswith("agents_") and (not host or behind or "@" in parts.netloc):
        return f"{shape}, and nothing else"
    if name != "redis_url" and "@" in database:
        return f"{shape}, {escaped}"
    return ""


def _with_one_host(url: str) -> str:
    """Return a URL of several hosts with a single one: the first that has a wrong port, else the first."""
    scheme, _, rest = url.partition("://")
    authority, slash, tail = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    ports = ((one, _PORT.search(one)) for one in hosts.split(","))
    wrong = (one for one, at in ports if at and not (at[1].isdecimal() and 0 < int(at[1]) <= PORT_MAX))
    return f"{scheme}://{user}{at}{next(wrong, hosts.partition(',')[0])}{slash}{tail}"


# The TLS settings of our ports: three files each, with the same endings.

# The prefixes of each port's settings.
PREFIXES = {"gateway": "tls_", "admin": "admin_tls_", "ops": "ops_tls_"}


def files_of(port: str, value: Callable[[str], str]) -> TlsFiles | None:
    """Return the TLS files of a port from its settings, which `value` reads; None without a certificate."""
    prefix = PREFIXES[port]
    certificate = value(f"{prefix}cert_file")
    if not certificate:
        return None
    return TlsFiles(value(f"{prefix}client_ca_file"), certificate, value(f"{prefix}key_file"))


def check_workloads(workloads: AnyCollection[object], values: Mapping[str, Any], begin: str) -> None:
    """Raise `SettingError` if workloads are configured without a CA for client certificates.

    `begin` is the prefix of variables in the message.
    """
    if workloads and not values.get("tls_client_ca_file"):
        said = f"{begin}TLS_CLIENT_CA_FILE is not set, but there are workloads"
        raise SettingError(f"{said}: expected a PEM file of the authorities that sign their certificates")


def check_pairs(values: Mapping[str, Any], begin: str) -> None:
    """Raise `SettingError` if a port has only some of its TLS files, since it would silently be unencrypted.

    `begin` is the prefix of variables in the message.
    """
    for prefix in PREFIXES.values():
        certificate, key, authority = (f"{prefix}{name}_file" for name in ("cert", "key", "client_ca"))
        there = key if values.get(key) else authority if values.get(authority) else ""
        if there and not values.get(certificate):
            said = f"{begin}{certificate.upper()} is not set, but {begin}{there.upper()} is"
            raise SettingError(f"{said}: expected a PEM file of the certificate")
        if values.get(certificate) and not values.get(key):
            said = f"{begin}{key.upper()} is not set, but {begin}{certificate.upper()} is"
            raise SettingError(f"{said}: expected a PEM file of the certificate's key")


def authority_at(ca_file: str | None, otherwise: str) -> ssl.SSLContext:
    """Return a TLS context for a file of authorities. Raise `SettingError(otherwise)` if it is unusable."""
    try:
        require_regular(ca_file)
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # `ssl.SSLError` is one: then it is no PEM file
        raise SettingError(otherwise) from error


# Origins of pages that may call the data plane: the value of one setting.

ORIGINS_MAX = 200
ORIGINS_WANTED = f"* or at most {ORIGINS_MAX} origins such as https://app.example.com, with commas between"
# Scheme, host and optionally a port, as browsers send them: RFC 6454, 6.2.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?")
_USUAL = {"http": ":80", "https": ":443"}


def origins_of(text: str) -> frozenset[bytes]:
    """Return the origins in a comma-separated list. Raise `ValueError`, which names the first invalid one."""
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    if words == ["*"]:
        return frozenset({b"*"})
    if len(words) > ORIGINS_MAX:
        raise ValueError(f"there are {len(words)}")
    for word in words:
        if not _ORIGIN.fullmatch(word):
            raise ValueError(f"{word!r} is no origin")
        scheme = word.partition(":")[0]
        if word.endswith(_USUAL.get(scheme, "/")):
            raise ValueError(f"{word!r} has the port that browsers leave out")
    return frozenset(word.encode() for word in words)


# Settings with a parser, and the valid values in words.
_READ_BY: Mapping[str, tuple[Callable[[str], object], str]] = {
    "cors_origins": (origins_of, ORIGINS_WANTED), "price_as": (read_stand_ins, WANTED),
}  # fmt: skip
SECRET = re.compile(r"token|secret|pepper|password|credential|_key$|^key_", re.IGNORECASE)
# The annotation of secret settings.
IS_SECRET = msgspec.Meta(extra={"secret": True})
# The `description` of a text's type says what is valid, for messages. Settings of `Lines` may have line breaks.
Lines = Annotated[str, msgspec.Meta(description="a text, with line breaks if needed", extra={"lines": True})]


def is_secret(hint: Any) -> bool:
    """Return whether the type of a setting marks it as a secret."""
    return any((meta.extra or {}).get("secret") for meta in _metas(hint))


def has_lines(hint: Any) -> bool:
    """Return whether a setting of this type may have line breaks."""
    return any((meta.extra or {}).get("lines") for meta in _metas(hint))


def checked(said: str, name: str, value: Any, hint: Any) -> Any:
    """Return the value converted to its type. Raise `SettingError` with a message that begins with `said`."""
    if isinstance(value, str) and value != value.strip() and not has_lines(hint):
        right = wanted_of(name, hint)
        raise SettingError(f"{said} is not valid: it begins or ends with a space; expected {right}")
    try:
        found = msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError as error:
        raise SettingError(f"{said} is not valid: expected {wanted_of(name, hint)}") from error
    if name in _HOLDS and not _HOLDS[name](found):
        raise SettingError(f"{said} is not valid: expected {wanted_of(name, hint)}")
    if name in SCHEMES and (expected := fault(name, str(found))):
        raise SettingError(f"{said} is not valid: expected {expected}")
    if name in _READ_BY:
        read, right = _READ_BY[name]
        try:
            read(found)
        except ValueError as error:
            raise SettingError(f"{said} is not valid: {error}; expected {right}") from error
    return found


# The unit of a number, by its setting's name: the first row that is found in it.
_UNITS = (
    (r"_messages_s$", " messages a second"), (r"_s(_max|_an_hour)?$", " seconds"), (r"_bytes_max$", " bytes"),
    (r"_hours$", " hours"), (r"_days$", " days"), (r"_months$", " months"), ("", ""),
)  # fmt: skip


def wanted_of(name: str, hint: Any) -> str:
    """Return the valid values of a setting in words, derived from its type."""
    if name in SCHEMES:
        return wanted(name)
    if name in _READ_BY:
        return _READ_BY[name][1]
    if hint is bool:
        return "true or false"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    meta = _metas(hint)[0]
    if meta.description is not None:
        return meta.description
    noun = {int: "a whole number", float: "a number"}[hint.__origin__]
    low = f"from {meta.ge} to" if meta.gt is None else f"above {meta.gt}, at most"
    unit = next(unit for ending, unit in _UNITS if re.search(ending, name))
    return f"{noun} {low} {meta.le}{unit}"


# How many names are suggested for a setting that resembles none.
NEAREST_MAX = 3


def unknown(place: str, name: str, value: str, names: tuple[str, ...], prefix: str) -> SettingError:
    from difflib import get_close_matches  # noqa: PLC0415  # where something is misspelt

    plain = name.lower().removeprefix("tollkeeper_")
    if plain in names:
        written = "in capitals" if prefix else "in lower case, without the prefix"
        right = f"did you mean {prefix}{plain.upper() if prefix else plain}? It is written {written}"
        return SettingError(f"{place}={shown(plain, value)} is not a setting; {right}")
    close = _of_words(name, names) or get_close_matches(name, names, n=1, cutoff=0.6)
    nearest = close or get_close_matches(name, names, n=NEAREST_MAX, cutoff=0.0)
    spelled = [prefix + (each.upper() if prefix else each) for each in nearest]
    hint = f"did you mean {spelled[0]}?"
    if not close:
        hint = f"the nearest are {', '.join(spelled)}, and docs/settings.md has all of them"
    secret = name if SECRET.search(name) else (close[0] if close else name)
    return SettingError(f"{place}={shown(secret, value)} is not a setting; {hint}")


def _of_words(name: str, names: tuple[str, ...]) -> list[str]:
    """Return a list of the best setting in `names` that contains all words of `name`; [] if none does.

    Gateway settings are preferred, then short names.
    """
    words = set(name.split("_"))
    found = [each for each in names if words.issubset(each.split("_"))]
    return sorted(found, key=lambda each: (not each.startswith("gateway_"), each.count("_")))[:1]


def shown(name: str, value: Any) -> str:
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


def _is_address(text: str) -> bool:
    from gateway.core.alerts.messages import is_address  # noqa: PLC0415  # workers have none, and are spared it

    return is_address(text, private=True)


# Settings with a rule that no pattern says; the words of their types say it.
_HOLDS: Mapping[str, Callable[[str], bool]] = {"smtp_from": _is_address, "usage_feed_code": str.isprintable}


def _metas(hint: Any) -> list[msgspec.Meta]:
    return [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, msgspec.Meta)]


def check_together(values: Mapping[str, Any], prefix: str) -> None:
    """Raise `SettingError` for the first combination of settings that is not valid."""
    if values.get("readonly_token") and values["readonly_token"] == values.get("admin_token"):
        raise SettingError(
            f"{prefix}READONLY_TOKEN=(hidden) is not valid: expected another one than {prefix}ADMIN_TOKEN"
        )
    if values.get("smtp_url") and not values.get("smtp_from"):
        raise SettingError(f"{prefix}SMTP_FROM is not set: expected name@example.com, whom mails are from")
    feed = values.get("usage_feed", "off")
    if feed != "off" and not values.get("usage_feed_url"):
        right = "file:///path" if feed == "file" else "https://host:port"
        raise SettingError(f"{prefix}USAGE_FEED_URL is not set: expected {right}, where {feed} is")
    if feed != "off" and (feed == "file") != values["usage_feed_url"].startswith("file:"):
        right = "file:///path for file, and https://host:port for every other feed"
        said = f"{prefix}USAGE_FEED_URL is not valid for {prefix}USAGE_FEED={feed}"
        raise SettingError(f"{said}: expected {right}")


# The ports that one process listens on, by role; `all` is `up`.
PORTS = {"serve": ("gateway_port", "ops_port"), "all": ("gateway_port", "admin_port")}


def check_ports(values: Mapping[str, Any], role: str, prefix: str) -> None:
    """Raise `SettingError` if a process of this role would listen on one port for two purposes."""
    names = PORTS.get(role, ())
    numbers = {values[name] for name in names}
    if len(numbers) < len(names) and numbers != {0}:
        said = f"{' and '.join(prefix + name.upper() for name in names)} are both {numbers.pop()}"
        raise SettingError(f"{said}: expected different ports, or 0 for any free one")


def name_of(variable: str, prefix: str) -> str:
    """Return a setting's name for an environment variable: without `prefix`, and in lower case.

    A variable with lower-case letters is not converted, so that it is refused as unknown.
    """
    name = variable.removeprefix(prefix)
    return name.lower() if name == name.upper() else variable


# Types of settings.

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
# How long to keep data: 0 is for ever.
Days = Annotated[int, msgspec.Meta(ge=0, le=36_500)]
Months = Annotated[int, msgspec.Meta(ge=0, le=1_200)]
Reclaim = Literal["charge_observed", "release", "charge_hold"]
Collection = Literal["charge_automatically", "send_invoice"]
# An empty host would be every address, and an empty data directory the current one.
Host = Annotated[
    str, msgspec.Meta(min_length=1, description="an address or name of this machine, such as 127.0.0.1")
]
Folder = Annotated[str, msgspec.Meta(description="the path of a directory")]
DataFolder = Annotated[str, msgspec.Meta(min_length=1, description="the path of a directory")]
FilePath = Annotated[str, msgspec.Meta(description="the path of a file")]
FeedCode = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=USAGE_FEED_CODE_CHARS_MAX,
        description=f"1 to {USAGE_FEED_CODE_CHARS_MAX} characters that can be seen",
    ),
]
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
ReminderDays = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(\d{1,3}(,\d{1,3}){0,9})?\Z",
        description="up to ten numbers of days with commas between, such as 7,14,21",
    ),
]


def read_file(path: Path, bytes_max: int) -> bytes:
    """Return the content of a user's file. Raise `SettingError` if it is unreadable, or too long."""
    try:
        text = read_regular(path, bytes_max)
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror})") from error
    if len(text) > bytes_max:
        raise SettingError(f"{path}: larger than {bytes_max} bytes")
    return text


def converted(document: Any, environ: Mapping[str, str], shape: type[T], place: str) -> T:
    """Return a document converted to its type, with each `${NAME}` replaced.

    Raise `SettingError` with the path of the wrong field.
    """
    document = substituted(document, environ, place)
    if isinstance(document, dict):  # each of `settings` is checked by its type
        for where, text in texts_of({**document, "settings": None}, place):
            refuse_controls(where, text)
    try:
        return msgspec.convert(document, shape)
    except msgspec.ValidationError as error:
        raise SettingError(f"{place}: {explained(str(error), document, shape)}") from error


def parsed(text: bytes, place: str) -> Any:
    """Return the parsed YAML. Raise SettingError with the name `place` and the line if it is not valid."""
    from gateway.yaml_reader import UnreadableYaml, documents  # noqa: PLC0415  # no worker reads files

    try:
        found = [*islice(documents(text.decode("utf-8-sig"), place), 2)]
    except UnreadableYaml as error:
        raise SettingError(f"{place} line {error.line}: not valid YAML ({error.said})") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{place}: not valid YAML (not text)") from error
    if len(found) > 1:
        raise SettingError(f"{place}: not valid YAML (more than one document)")
    return found[0].value if found else None


def substituted(value: Any, environ: Mapping[str, str], place: str) -> Any:
    """Return the document with `${NAME}` replaced in every string; SettingError for an unset variable."""
    if isinstance(value, dict):
        return {key: substituted(item, environ, f"{place}: {key}") for key, item in value.items()}
    if isinstance(value, list):
        return [substituted(item, environ, f"{place}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None:
            return "$"
        found = environ.get(name) or match["otherwise"]
        if found is None:
            raise SettingError(f"{place}: the environment variable {name} is not set")
        return found

    return _VARIABLE.sub(replacement, value)


# `$NAME` or `$(NAME)` as a word of its own, which shells and Kubernetes replace.
_NAME_ALONE = re.compile(r"(?<![^\s:/@=])\$\(?[A-Z][A-Z0-9_]+(?![\w$])")


def unreplaced(document: Any, place: str) -> Iterator[str]:
    """Yield a line for each text of a document with a `$NAME` that `substituted` takes as it stands."""
    for where, text in texts_of(document, place):
        if _NAME_ALONE.search(_VARIABLE.sub("", text)):
            said = "has a $ before a name, which is taken as it stands"
            yield f"{where} {said}: write ${{NAME}} for a variable, and $$ for a dollar sign"


def explained(fault: str, document: Any, shape: Any) -> str:
    """Return msgspec's error about a document in words: the path of the wrong field, and valid values."""
    found = _FAULT.fullmatch(fault)
    said, place = (found["said"], found["place"] or "") if found else (fault, "")
    field = re.search(r"unknown field `(.*)`|missing required field `(.*)`", said)
    where, kind = _at(place, document, shape, field[1] if field else None)
    if field and field[1]:
        return f"{_joined(where, field[1])} is not known; {_near(field[1], _fields(kind))}"
    if field:
        return f"{_joined(where, field[2])} is missing"
    if found and found["key"]:
        return f"{where}: a name of letters, digits, dots, - and _ is expected, at most 64"
    choices = _choices(kind)
    if choices and (word := re.search(r"value '(.*)'", said)):
        return f"{where}: '{word[1]}' is not one of {', '.join(choices)}"
    said = re.sub(r"`([a-z |]+)`", lambda kinds: _nouns(kinds[1]), said)
    return f"{where or 'the whole file'}: {said[:1].lower()}{said[1:]}"


def _at(place: str, document: Any, shape: Any, unknown: str | None) -> tuple[str, Any]:
    """Convert msgspec's path `place` to the names in the file; return it and the type expected there.

    msgspec does not name the item of a mapping. It is found by the field `unknown`, if only one item has
    that.
    """
    ways: list[tuple[str, Any]] = [("", document)]
    for step in _STEP.finditer(place):
        shape = _plain(shape)
        if step["name"]:
            shape = get_type_hints(shape, include_extras=True)[step["name"]]
            ways = [(_joined(way, step["name"]), _item(part, step["name"])) for way, part in ways]
        elif step["index"]:
            shape = get_args(shape)[0]
            ways = [(f"{way}[{step['index']}]", _item(part, int(step["index"]))) for way, part in ways]
        else:
            shape = get_args(shape)[1]
            ways = [(_joined(way, str(key)), value) for way, part in ways for key, value in _items(part)]
    if unknown is not None:
        ways = [way for way in ways if isinstance(way[1], dict) and unknown in way[1]] or ways
    return " or ".join(way for way, _ in ways[:3]), _plain(shape)


def _plain(shape: Any) -> Any:
    """Return a type without annotations, and without None."""
    if get_origin(shape) is Annotated:
        shape = get_args(shape)[0]
    if get_origin(shape) in (Union, UnionType):
        shape = next(each for each in get_args(shape) if each is not NoneType)
    return shape


def _item(part: Any, step: str | int) -> Any:
    try:
        return part[step]
    except (KeyError, IndexError, TypeError):
        return None


def _items(part: Any) -> Iterator[tuple[Any, Any]]:
    yield from part.items() if isinstance(part, dict) else ()


def _joined(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _fields(kind: Any) -> tuple[str, ...]:
    there = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    return tuple(kind.__struct_fields__) if there else ()


def _choices(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(each.value for each in kind) if isinstance(kind, type) and issubclass(kind, Enum) else ()


def _nouns(kinds: str) -> str:
    return " or ".join(_NOUNS.get(kind, kind) for kind in kinds.split(" | "))


def _near(name: str, known: tuple[str, ...]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415  # where something is misspelt

    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
