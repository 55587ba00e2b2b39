"""Addresses of customers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from gateway.admin.resources.values import Text
from gateway.core.billing.document import ADDRESS_LINES_MAX, countries


def _country(text: str) -> str:
    if text not in countries():
        raise ValueError('must be the two letters of a country (ISO 3166), such as "DE"')
    return text


Address = Annotated[list[Text], Field(min_length=1, max_length=ADDRESS_LINES_MAX)]
Country = Annotated[
    str,
    Field(strict=True),
    AfterValidator(_country),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z]{2}$", "examples": ["DE"]}),
]
