"""Peppers by their ids, and what credentials are kept as under each."""

from __future__ import annotations

import hashlib
import hmac

from gateway.core.credentials import Peppers, peppers_of
from gateway.settings.settings import Settings

CURRENT, EARLIER = "a-pepper-of-today", "one-of-last-year"


def by_hand(pepper: str, credential: str) -> str:
    return hmac.new(pepper.encode(), credential.encode(), hashlib.sha256).hexdigest()


def test_a_credential_is_kept_under_the_current_one_and_found_under_each() -> None:
    peppers = peppers_of(Settings(key_pepper=CURRENT, earlier_key_peppers=f"{EARLIER} {CURRENT}x"))
    assert peppers.digest("tk_1") == by_hand(CURRENT, "tk_1")
    names = (CURRENT, EARLIER, f"{CURRENT}x")
    assert peppers.digests("tk_1") == tuple(by_hand(one, "tk_1") for one in names)


def test_an_id_goes_with_its_pepper_wherever_that_stands_and_is_no_part_of_it() -> None:
    before = Peppers(EARLIER.encode())
    after = Peppers(CURRENT.encode(), (EARLIER.encode(),))
    assert after.ids[1:] == before.ids
    assert len({*after.ids}) == 2
    assert not any(one in CURRENT or one in EARLIER for one in after.ids)
