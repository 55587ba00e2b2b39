"""Addresses of customers; which countries there are, from the table that comes with the time zones."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from gateway.admin.resources.values import Text
from gateway.core.billing.document import ADDRESS_LINES_MAX


def _countries() -> frozenset[str]:
    rows = (files("tzdata") / "zoneinfo" / "iso3166.tab").read_text("utf-8").splitlines()
    return frozenset(row[:2] for row in rows if row and not row.startswith("#"))


def _country(text: str) -> str:
    if text not in COUNTRIES:
        raise ValueError('must be the two letters of a country (ISO 3166), such as "DE"')
    return text


COUNTRIES = _countries()
Address = Annotated[list[Text], Field(min_length=1, max_length=ADDRESS_LINES_MAX)]
Country = Annotated[
    str,
    Field(strict=True),
    AfterValidator(_country),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z]{2}$", "examples": ["DE"]}),
]
