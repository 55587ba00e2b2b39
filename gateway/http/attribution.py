"""Attribution: the `x-tollkeeper-*` fields of a request, which are checked and never forwarded.

The session may also be in a field of other tools, which is forwarded; an invalid value there counts as none.
"""

from __future__ import annotations

import json
from urllib.parse import unquote_to_bytes

from gateway.core.accounts.call_facts import ROW_MARKERS
from gateway.core.accounts.runs import FIELD_BYTES_MAX, ID_CHARACTERS_MAX, is_id, read_run
from gateway.core.accounts.tags import Tags, read_values
from gateway.core.calls.routes import Route
from gateway.core.families.header_fields import BAGGAGE_FIELD, OURS_PREFIX, SESSION_FIELDS
from gateway.core.model import INTEGER_MAX, PRIORITIES, Attribution, Family, RunRequest
from gateway.core.text import nests_within
from gateway.errors import InvalidRequest
from gateway.http.protocol.request import Values

USER_CHARACTERS_MAX = 128
FEATURE_VERSION_CHARACTERS_MAX = 64
PRIORITY_CHARACTERS_MAX = 16
SESSION_CHARACTERS_MAX = 128
METADATA_BYTES_MAX = 2048
METADATA_DEPTH_MAX = 32
UNITS_MAX = 1_000_000
# The member of W3C baggage that names a run.
RUN_IN_BAGGAGE = b"tollkeeper.run"
_NOTHING = Attribution()


def read_attribution(values: Values, family: Family) -> tuple[Attribution, str]:
    """Return a call's attribution from the header fields `values`, and its columns joined by tabs.

    Raise `InvalidRequest` that names a bad field.
    """
    if BAGGAGE_FIELD not in values and not any(name.startswith(OURS_PREFIX) for name in values):
        session = _their_session(values, family)
        return Attribution(session=session) if session else _NOTHING, ""
    user = _read_text(values, "user", USER_CHARACTERS_MAX)
    content_id = _read_integer(values, "content-id")
    project_id = _read_integer(values, "project-id")
    feature_version = _read_text(values, "feature-version", FEATURE_VERSION_CHARACTERS_MAX)
    metadata, tags = _metadata(values)
    session = _read_text(values, "session", SESSION_CHARACTERS_MAX) or _their_session(values, family)
    parts = (content_id, project_id, feature_version or None)
    columns = ["" if part is None else str(part) for part in parts]
    run, priority = _read_run(values), _read_text(values, "priority", PRIORITY_CHARACTERS_MAX)
    if priority and priority not in PRIORITIES:
        name = "x-tollkeeper-priority"
        raise InvalidRequest(f"{name} must be {' or '.join(PRIORITIES)}.", param=name)
    attribution = Attribution(
        user, content_id, project_id, feature_version, metadata, session, run, priority, tags
    )
    return attribution, "\t".join(columns) if any(columns) else ""


def _read_run(values: Values) -> RunRequest | None:
    """Return the run that a field names, or the baggage; raise `InvalidRequest`."""
    name, value = _read_field(values, "run")
    if value is None:
        return _run_of_baggage(values.get(BAGGAGE_FIELD, []))
    if len(value) > FIELD_BYTES_MAX or not value.isascii():
        raise InvalidRequest(f"{name} must be ASCII of at most {FIELD_BYTES_MAX} bytes.", param=name)
    try:
        return read_run(value.decode("ascii"))
    except ValueError as error:
        raise InvalidRequest(f"{name} {error}.", param=name) from error


def run_in_baggage(line: bytes) -> bytes:
    """Return a W3C baggage line reduced to the member that names a run; empty if no member does."""
    runs = _runs_in(line.partition(b":")[2])
    return b"%b: %b" % (BAGGAGE_FIELD, b",".join(runs)) if runs else b""


def _runs_in(baggage: bytes) -> list[bytes]:
    if RUN_IN_BAGGAGE not in baggage:
        return []
    members = [member.strip(b" \t") for member in baggage.split(b",")]
    return [member for member in members if member.partition(b"=")[0].strip(b" \t") == RUN_IN_BAGGAGE]


def _run_of_baggage(lines: list[bytes]) -> RunRequest | None:
    """Return the run whose id the W3C baggage `lines` name, or None if they name none.

    Used only without an `x-tollkeeper-run` field. Raise `InvalidRequest` for two runs or an invalid id.
    """
    members = [run for line in lines for run in _runs_in(line)]
    if not members:
        return None
    value = unquote_to_bytes(members[0].partition(b"=")[2].partition(b";")[0].strip(b" \t"))
    id_ = value.decode("ascii", "replace")
    if len(members) > 1 or not is_id(id_):
        raise InvalidRequest(
            f"baggage must name {RUN_IN_BAGGAGE.decode()} once, by an id of 1 to {ID_CHARACTERS_MAX} visible "
            "ASCII characters.", param="baggage",
        )  # fmt: skip
    return RunRequest(id_)


def read_units(values: Values, route: Route) -> int:
    """Return the units that the client claims, 1 by default.

    Raise `InvalidRequest` if the number is invalid, or the route does not trust clients.
    """
    name, value = _read_field(values, "units")
    if value is None:
        return 1
    if not route.trust_client_units:
        raise InvalidRequest(f"{name} is not accepted on this route.", param=name)
    if not value.isdigit() or len(value) > len(str(UNITS_MAX)) or not 1 <= int(value) <= UNITS_MAX:
        raise InvalidRequest(f"{name} must be a whole number from 1 to {UNITS_MAX}.", param=name)
    return int(value)


def _read_field(values: Values, suffix: str) -> tuple[str, bytes | None]:
    """Return the name and value of the header field `x-tollkeeper-<suffix>`; the value is None if missing.

    Raise `InvalidRequest` if the field appears twice.
    """
    name = f"x-tollkeeper-{suffix}"
    lines = values.get(name.encode(), ())
    if len(lines) > 1:
        raise InvalidRequest(f"The field {name} appears twice.", param=name)
    return name, lines[0] if lines else None


def _read_text(values: Values, suffix: str, characters_max: int) -> str:
    """Return the text in a field, empty without one; raise `InvalidRequest`."""
    name, value = _read_field(values, suffix)
    if not value:
        return ""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} must be UTF-8.", param=name) from error
    if len(text) > characters_max or not text.isprintable():
        right = f"printable text of at most {characters_max} characters"
        raise InvalidRequest(f"{name} must be {right}.", param=name)
    return text


def _their_session(values: Values, family: Family) -> str:
    """Return the session id from the first valid field in which clients of this API send one; else ""."""
    for name in SESSION_FIELDS[family]:
        lines = values.get(name, ())
        if len(lines) == 1 and len(lines[0]) <= SESSION_CHARACTERS_MAX:
            text = lines[0].decode("utf-8", "replace")
            if text.isprintable() and text.isascii() and text:
                return text
    return ""


def _read_integer(values: Values, suffix: str) -> int | None:
    """Return the whole number in a field, None without one; raise `InvalidRequest`."""
    name, value = _read_field(values, suffix)
    if value is None:
        return None
    if not value.isdigit() or len(value) > len(str(INTEGER_MAX)) or int(value) > INTEGER_MAX:
        raise InvalidRequest(f"{name} must be a whole number, not negative.", param=name)
    return int(value)


def _metadata(values: Values) -> tuple[bytes, Tags]:
    """Return the caller's metadata as JSON, and those of its members that can be tags."""
    name, value = _read_field(values, "metadata")
    if value is None:
        return b"", ()
    if len(value) > METADATA_BYTES_MAX:
        raise InvalidRequest(f"{name} must be at most {METADATA_BYTES_MAX} bytes.", param=name)
    try:
        read = json.loads(value.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
        if not isinstance(read, dict):
            raise InvalidRequest(f"{name} must be a JSON object.", param=name)
        if not nests_within(read, METADATA_DEPTH_MAX):
            raise InvalidRequest(f"{name} may be {METADATA_DEPTH_MAX} levels deep.", param=name)
        for marker in ROW_MARKERS:
            read.pop(marker, None)
        written = json.dumps(read, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} must be a JSON object.", param=name) from error
    if b"\\u0000" in written:
        raise InvalidRequest(f"{name} must be a JSON object without NUL.", param=name)
    return written, read_values(read)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidRequest("x-tollkeeper-metadata must have each name once.", param="x-tollkeeper-metadata")
    return members


def _refuse_constant(name: str) -> object:
    raise ValueError(name)
