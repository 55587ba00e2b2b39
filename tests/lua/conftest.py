"""A verified partition with one organization, tenant and key, fresh for each test.

Its calls run alone. Under `AMONG_OTHERS` they run among others as well: what is drawn, and what is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from gateway.core.model import HoldRequest, Settlement
from gateway.counters.layouts import packing
from tests.builders import CHAT, TTL_MS, World, new_id, together

NOBODY = 999_999


class Crowded(World):
    """Each `reserve` and `settle` is one of three in a call of the function: the others change nothing."""

    def run(self, verb: str, call: packing.Call) -> Any:
        names, arguments = call
        if verb not in packing.SHARED or len(names) <= packing.SHARED[verb]:
            return super().run(verb, call)
        first = arguments[0][:8] if arguments else b""
        number = int(struct.unpack("<d", first)[0]) if len(first) == 8 else packing.NO_BATCH
        other = self._reserve(number) if verb == "reserve" else self._release(number)
        before, answer, behind = super().run(verb, together(verb, [other, call, other]))
        assert before == behind
        assert packing.code_of(before) != 1
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _reserve(self, number: int) -> packing.Call:
        request = HoldRequest(replace(self.caller, tenant_id=NOBODY), new_id(), "", CHAT, 1, 1)
        return packing.reserve(self.run_id, self.catalogue, TTL_MS, request, number)

    def _release(self, number: int) -> packing.Call:
        release = Settlement(self.caller, new_id(), "ann", CHAT, charge=False)
        return packing.settle(self.run_id, 0, release, packing.MODE_RELEASE, batch=number)


AMONG_OTHERS = pytest.mark.parametrize(
    "world", [World, Crowded], ids=["alone", "among others"], indirect=True
)


@pytest.fixture
def world(valkey: str, request: pytest.FixtureRequest) -> Iterator[World]:
    made = getattr(request, "param", World)(valkey)
    yield made
    made.client.close()
