"""Users and models as calls name them. What no call can say is 422, as nothing would ever be of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from gateway.admin.resources.values import Text

EXTERNAL_ID_CHARS_MAX = 128
ANY_ENDING = "*"


def _user(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("must be printable and not blank: no call can name such a user")
    return text


def _model(pattern: str) -> str:
    name = pattern.removesuffix(ANY_ENDING)
    bare = name.strip() if name == pattern else name.lstrip()
    if not name.isprintable() or name != bare:
        raise ValueError("must be printable, without blanks around it: no call can name such a model")
    return pattern


def printable(text: str) -> str:
    """What a token may say: a text that can be shown."""
    if not text.isprintable():
        raise ValueError("must be printable: no token is read that says anything else")
    return text


# What callers call their users.
ExternalId = Annotated[
    str, Field(strict=True, min_length=1, max_length=EXTERNAL_ID_CHARS_MAX), AfterValidator(_user)
]
# A model as calls name it, or with a * behind it what such names begin with.
ModelText = Annotated[Text, AfterValidator(_model)]
