"""What values of settings there are, by more than a number's bounds."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gateway.core.peppers import EARLIER_MAX
from gateway.settings.checking import IS_SECRET

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
# How long something is kept: 0 is for ever.
Days = Annotated[int, msgspec.Meta(ge=0, le=36_500)]
Months = Annotated[int, msgspec.Meta(ge=0, le=1_200)]
Reclaim = Annotated[str, msgspec.Meta(pattern="^(charge_observed|release|charge_hold)$")]
Collection = Annotated[str, msgspec.Meta(pattern="^(charge_automatically|send_invoice)$")]
# What is declared a secret may be said by a file instead: `<NAME>_FILE`.
Secret = Annotated[str, IS_SECRET]
Token = Annotated[str, msgspec.Meta(pattern=r"^([\x21-\x7e]{16,512})?$"), IS_SECRET]
# A space between two, which no pepper has in it.
_PEPPER = r"[\x21-\x7e]{16,512}"
EarlierPeppers = Annotated[
    str, msgspec.Meta(pattern=rf"^({_PEPPER}( {_PEPPER}){{0,{EARLIER_MAX - 1}}})?$"), IS_SECRET
]
