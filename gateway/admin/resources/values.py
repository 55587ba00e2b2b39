"""The types of resources' fields: how each is validated in requests and written in answers.

Everything is strict: a number in quotes, a float instead of an integer, or a time without a time zone is
refused, never converted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    Tag,
    WithJsonSchema,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_after_validator_function

from gateway.core.accounts.call_facts import read_facts, told_of
from gateway.core.accounts.tags import CHARACTERS_MAX as TAG_CHARACTERS_MAX
from gateway.core.accounts.tags import NAME as TAG_NAME
from gateway.core.accounts.tags import RESERVED as TAGS_RESERVED
from gateway.core.accounts.tags import TAGS_MAX, read_value
from gateway.core.billing.charges import TOKEN_PRICE_MAX
from gateway.core.billing.document import ADDRESS_LINES_MAX, ENDPOINT, MAIL, countries
from gateway.core.billing.money import EXACT, MICRO, MINOR_DIGITS, NANO
from gateway.core.calls.routes import PATTERN_SCHEMA, read_pattern
from gateway.core.model import INTEGER_MAX
from gateway.core.text import hidden_in
from gateway.core.times import is_zone, rfc3339

TEXT_CHARS_MAX = 200
LONG_TEXT_CHARS_MAX = 4000
MODELS_MAX = 100
FRACTION_DIGITS_MAX = 6
MARKUP_MAX, RATE_MAX = 1_000, 1_000_000_000
YEAR_MIN, YEAR_MAX = 1970, 2999

DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?", re.ASCII)
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,30})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
# Digits beyond microseconds: Go writes nine digits, .NET seven.
_FINER = re.compile(r"(\.\d{6})\d+")
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_BREAK = re.compile(r"[\t\n\r]")
_PHONE = r"([^0-9]*[0-9]){3}.*"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class In(BaseModel):
    """The base class of request bodies; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class Out(BaseModel):
    """The base class of answers."""

    model_config = ConfigDict(extra="ignore", defer_build=True)


def must(holds: Callable[[Any], bool], be: str) -> AfterValidator:
    """Return a validator of the condition `holds`, whose error message is "must", followed by `be`."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError(f"must {be}")
        return value

    return AfterValidator(check)


def optional(description: str, **more: Any) -> Any:
    """Return a field whose default is null."""
    return Field(default=None, description=description, **more)


def _dumped(value: BaseModel | Sequence[BaseModel] | None) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    return None if value is None else [_dumped(one) for one in value]


# The two forms of a service tier's price, in the path of a validation error.
FACTOR, TABLE = FORMS = ("[factor]", "[table]")
# Serializes a model, or a list of models, to the JSON that is stored, without nulls.
AS_STORED = PlainSerializer(_dumped)


def read_instant(text: str) -> datetime:
    """Parse an RFC 3339 time, to the microsecond; raise `ValueError` if it has no offset from UTC."""
    if _INSTANT.fullmatch(text) is None:
        example = f"{text if _DATE.fullmatch(text) else '2026-01-31'}T00:00:00Z"
        raise ValueError(f"must be an RFC 3339 time with a time zone, such as {example}")
    try:
        return datetime.fromisoformat(_FINER.sub(r"\1", text.upper())).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("is outside the years 1 to 9999") from error


def read_moment(text: str) -> datetime:
    """Parse an RFC 3339 time, or a day, which means its start in UTC; raise `ValueError` for others."""
    if _DATE.fullmatch(text) is not None:
        return datetime.combine(date.fromisoformat(text), time(), UTC)
    if _INSTANT.fullmatch(text) is None:
        said = "must be a day such as 2026-01-31, or an RFC 3339 time with a time zone, such as"
        raise ValueError(f"{said} 2026-01-31T00:00:00Z")
    return read_instant(text)


def show_instant(moment: datetime) -> str:
    """Format a time as RFC 3339 in UTC, with microseconds only if there are any."""
    return rfc3339(moment)


def show_decimal(number: Decimal) -> str:
    """Format a decimal with two decimals or more, without exponent and further trailing zeros."""
    text = f"{number:f}"
    if "." not in text:
        return text
    whole, _, part = text.partition(".")
    part = part.rstrip("0").ljust(2, "0")
    return f"{whole}.{part}"


def _instant(value: object) -> object:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise ValueError("must be an RFC 3339 time in a string")  # noqa: TRY004  # pydantic reports ValueError
    return read_instant(value)


def _read_day(value: object) -> object:
    """Return a day that is sent as a date, or as its midnight in UTC; raise `ValueError`."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    if isinstance(value, str) and _DATE.fullmatch(value):
        return plausible(date.fromisoformat(value))
    if not isinstance(value, str) or _INSTANT.fullmatch(value) is None:
        raise ValueError("must be a day such as 2026-01-31")
    at = read_instant(value)
    if at.time() != time():
        raise ValueError("must be a whole UTC day: a date, or its midnight")
    return plausible(at.date())


def plausible(day: date) -> date:
    """Return the day; raise `ValueError` outside of the years with which times can be computed."""
    if not YEAR_MIN <= day.year <= YEAR_MAX:
        raise ValueError(f"must be in the years {YEAR_MIN} to {YEAR_MAX}")
    return day


def read_decimal(value: object) -> object:
    """Parse a decimal in a string; raise `ValueError` for anything else."""
    if isinstance(value, Decimal):
        return value
    if not isinstance(value, str) or DECIMAL.fullmatch(value) is None:
        raise ValueError('must be a decimal in a string, such as "12.50"')
    return Decimal(value)


def _factor(most: int, digits: int) -> AfterValidator:
    be = f"be above 0 and at most {most}, with at most {digits} decimals"
    return must(lambda value: 0 < value <= most and value == round(value, digits), be)


def _check_legible(text: str) -> str:
    """Return a text that people can read; raise `ValueError` for a blank one, or for hidden characters."""
    hidden = hidden_in(text)
    if hidden:
        raise ValueError(f"must not hold control or invisible characters, such as its {hidden}")
    if _CONTROL.search(text):
        raise ValueError("must not hold control characters")
    if text and not text.strip():
        raise ValueError("must not be blank")
    return text


def _one_line(text: str) -> str:
    if _BREAK.search(text):
        raise ValueError("must be one line, without tabs")
    return _check_legible(text)


def _pattern(text: str) -> str:
    read_pattern(text)
    return text


@dataclass(frozen=True, slots=True)
class _PatternText:
    """A validator of texts by a pattern; `right` describes a valid text."""

    pattern: str
    right: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(core) | {"pattern": f"^{self.pattern}$"}

    def _check(self, text: str) -> str:
        if re.fullmatch(self.pattern, text) is None:
            raise ValueError(f"must be {self.right}")
        return text


def _word(characters: str, right: str) -> _PatternText:
    pattern = rf"[{characters}][{characters}._-]{{0,63}}"
    return _PatternText(pattern, f"1 to 64 of {right}, '.', '_' and '-', beginning with a letter or digit")


def _tag(value: object) -> str:
    if text := read_value(value):
        return text
    raise ValueError(
        f"must be a text of 1 to {TAG_CHARACTERS_MAX} characters without control or direction characters,"
        " a number, true or false"
    )


# Standard base64 with its padding (RFC 4648, 4).
BASE64 = _PatternText(r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", "base64")


def _answer_value(value: object) -> object:
    if not isinstance(value, list):
        return value
    facts = read_facts(json.dumps(value).encode())
    return {"unreadable": True} if facts is None else json.loads(told_of(facts))


Id = Annotated[int, Field(strict=True, ge=1, le=INTEGER_MAX)]
Amount = Annotated[int, Field(strict=True, ge=0, le=INTEGER_MAX)]
SignedOrZero = Annotated[int, Field(strict=True, ge=-INTEGER_MAX, le=INTEGER_MAX)]
PositiveAmount = Annotated[int, Field(strict=True, ge=1, le=INTEGER_MAX)]
AnchorDay = Annotated[int, Field(strict=True, ge=1, le=31)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True, min_length=1, max_length=TEXT_CHARS_MAX), AfterValidator(_one_line)]
Zone = Annotated[Text, must(is_zone, "be a name of the IANA's, such as Europe/Berlin")]
LongText = Annotated[str, Field(strict=True, max_length=LONG_TEXT_CHARS_MAX), AfterValidator(_check_legible)]
# A row's metadata. A keeper older than its gateways stored the packed facts of a call.
Metadata = Annotated[dict[str, Any], BeforeValidator(_answer_value)]
ServiceKey = Annotated[str, Field(strict=True), _word("a-z0-9", "a-z, 0-9")]
UpstreamName = Annotated[str, Field(strict=True), _word("A-Za-z0-9", "A-Z, a-z, 0-9")]
TagName = Annotated[
    str, Field(strict=True), _PatternText(TAG_NAME, "1 to 64 of letters, digits, '_', '-' and '.'")
]
TagNames = Annotated[
    list[TagName],
    Field(max_length=TAGS_MAX, json_schema_extra={"uniqueItems": True}),
    must(lambda names: len(set(names)) == len(names), "have each name once"),
    must(TAGS_RESERVED.isdisjoint, f"not be {', '.join(sorted(TAGS_RESERVED))}: every charge has these"),
]
TagValue = Annotated[
    str,
    BeforeValidator(_tag),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": TAG_CHARACTERS_MAX}),
]
TagValues = Annotated[dict[TagName, TagValue], Field(max_length=TAGS_MAX)]
PathPattern = Annotated[
    str,
    Field(strict=True),
    AfterValidator(_pattern),
    WithJsonSchema({**PATTERN_SCHEMA, "examples": ["/v1/sms/*"]}),
]
Currency = Annotated[
    str, Field(strict=True), _PatternText(f"({'|'.join(MINOR_DIGITS)})", 'an ISO 4217 code, such as "USD"')
]
Money = Annotated[
    Decimal,
    BeforeValidator(read_decimal),
    PlainSerializer(show_decimal, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": f"^{DECIMAL.pattern}$", "examples": ["12.50"]}),
]
Paid = Annotated[
    Decimal,
    PlainSerializer(lambda number: f"{number:f}", when_used="json"),
    WithJsonSchema({"type": "string", "description": "In the decimals of its currency."}),
]
# A computed number, written exactly without trailing zeros.
Exactly = Annotated[
    Decimal,
    PlainSerializer(lambda number: f"{EXACT.normalize(number):f}", when_used="json"),
    WithJsonSchema({"type": "string"}),
]
Cap = Annotated[
    Money,
    must(
        lambda value: value <= INTEGER_MAX // MICRO and value == round(value, 6),
        f"be at most {INTEGER_MAX // MICRO} with at most 6 decimals",
    ),
]
RunAmount = Annotated[Money, _factor(INTEGER_MAX // NANO, 9)]
Markup = Annotated[Money, _factor(MARKUP_MAX, 6)]
# Credits for a unit of a currency.
Rate = Annotated[Money, _factor(RATE_MAX, 9)]
# The same, or as a whole number, as amounts of credits are.
CreditsPerUnit = Annotated[
    Rate,
    BeforeValidator(lambda value: Decimal(value) if type(value) is int else value),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^{DECIMAL.pattern}$"},
                {"type": "integer", "minimum": 1, "maximum": RATE_MAX},
            ],
            "examples": ["12.50"],
        }
    ),
]
Fraction = Annotated[
    Decimal,
    BeforeValidator(read_decimal),
    must(
        lambda value: value <= 1 and value == round(value, FRACTION_DIGITS_MAX),
        'be a fraction from "0" to "1" with at most 6 decimals',
    ),
    PlainSerializer(show_decimal, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^(0(\.\d{1,6})?|1(\.0{1,6})?)$", "examples": ["0.20"]}),
]
Day = Annotated[
    date,
    BeforeValidator(_read_day),
    PlainSerializer(lambda day: day.isoformat(), when_used="json"),
    WithJsonSchema({"type": "string", "format": "date", "examples": ["2026-01-31"]}),
]
Instant = Annotated[
    datetime,
    BeforeValidator(_instant),
    PlainSerializer(show_instant, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-01-31T00:00:00Z"]}),
]


class LimitsIn(In):
    """Limits of one scope; what is left out or null is not limited."""

    requests_per_minute: PositiveAmount | None = None
    tokens_per_minute: PositiveAmount | None = None
    concurrency: PositiveAmount | None = None


LimitsOut = Annotated[
    dict[str, int],
    WithJsonSchema(
        {
            "type": "object",
            "description": "Limits of one scope; what is absent is not limited.",
            "properties": {name: {"type": "integer", "minimum": 1} for name in LimitsIn.model_fields},
            "additionalProperties": False,
        }
    ),
]
SignedAmount = Annotated[
    SignedOrZero, Field(json_schema_extra={"not": {"const": 0}}), must(lambda value: value != 0, "not be 0")
]


# Names of users and models in calls. A name that no call can have is refused (422), as it would have no
# effect.

EXTERNAL_ID_CHARS_MAX = 128
ANY_ENDING = "*"


def _model(pattern: str) -> str:
    name = pattern.removesuffix(ANY_ENDING)
    bare = name.strip() if name == pattern else name.lstrip()
    if not name.isprintable() or name != bare:
        raise ValueError("must be printable, without blanks around it: no call can name such a model")
    return pattern


# The callers' own ids of their users.
ExternalId = Annotated[
    str,
    Field(strict=True, min_length=1, max_length=EXTERNAL_ID_CHARS_MAX),
    must(
        lambda text: text.isprintable() and bool(text.strip()),
        "be printable and not blank: no call can say it",
    ),
]
# A model's name in calls, or with a * at the end the beginning of names.
ModelText = Annotated[Text, AfterValidator(_model)]
# The name of a configured model for callers or at an upstream, with a * at the end for a prefix.
AskedModel = Annotated[
    str,
    Field(strict=True),
    _PatternText(r"[!-+\-.-~]{1,256}", "up to 256 visible ASCII characters, without a comma"),
]


Country = Annotated[
    str,
    Field(strict=True),
    must(lambda text: text in countries(), 'be the two letters of a country (ISO 3166), such as "DE"'),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z]{2}$", "examples": ["DE"]}),
]


class PostalAddressIn(In):
    """An address in parts, as in electronic invoices."""

    street: Text | None = None
    city: Text | None = None
    post_code: Text | None = None
    region: Text | None = None
    country: Country | None = optional("ISO 3166, two letters; null: `country` of the row.")


class ContactIn(In):
    """The contact for questions about invoices."""

    name: Text | None = None
    phone: Annotated[Text, _PatternText(_PHONE, "a number of 3 digits or more")] | None = None
    email: Annotated[Text, _PatternText(MAIL, "a mail address")] | None = None


# Names of lines and parts in the path of a validation error: no field has such a name.
ADDRESS_LINES, ADDRESS_PARTS = "[lines]", "[parts]"


def _address(value: object) -> object:
    """Return a postal address as a mapping if it is a list of one JSON line, as forms and commands send it.

    Other values are returned unchanged.
    """
    if not isinstance(value, list) or len(value) != 1:
        return value
    [line] = value
    if isinstance(line, str) and line.startswith("{"):
        with suppress(ValueError):
            return json.loads(line)
    return line if isinstance(line, dict) else value


# Addresses of customers: lines as printed, or parts.
Address = Annotated[
    Annotated[list[Text], Field(min_length=1, max_length=ADDRESS_LINES_MAX), Tag(ADDRESS_LINES)]
    | Annotated[PostalAddressIn, Tag(ADDRESS_PARTS)],
    Discriminator(lambda value: ADDRESS_LINES if isinstance(value, list) else ADDRESS_PARTS),
    BeforeValidator(_address),
    PlainSerializer(lambda value: value if isinstance(value, list) else _dumped(value)),
]
Contact = Annotated[ContactIn, AS_STORED]
EndpointId = Annotated[
    str,
    Field(strict=True, max_length=TEXT_CHARS_MAX),
    _PatternText(ENDPOINT, "a scheme and an identifier, such as 0088:4012345678901, or a mail address"),
]


# Maximum prices of a unit and of a token, since multiples of them are counted and billed.
def _maximum(most: int) -> AfterValidator:
    return must(lambda price: price <= most, f"be at most {most}")


# The counters sum the cost of units in millionths.
UnitPrice = Annotated[Money, _maximum(INTEGER_MAX // MICRO)]
TokenUnitPrice = Annotated[Money, _maximum(TOKEN_PRICE_MAX)]
