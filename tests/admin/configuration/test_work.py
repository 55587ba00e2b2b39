"""A plan takes as much work as its body is long, counted in calls: of a body, and of one twice as long."""

from __future__ import annotations

import asyncio
import random
import string
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType
from typing import Any, cast

import pytest

from gateway.admin.configuration.objects import ERRORS_MAX, read
from gateway.admin.configuration.planning import Planner
from gateway.admin.configuration.words import CHARS_MAX, SUGGESTED_MAX
from gateway.core.accounts.administration import Actor, Row
from gateway.errors import Unprocessable
from persistence.apply_transaction import ApplyTransaction
from tests.admin.configuration.test_names_of_others import person
from tests.admin.configuration.world import Objects, refused
from tests.admin.conftest import Api

FEW = 400


class Empty:
    """An installation in which nothing is."""

    async def find(
        self, resource: str, wanted: Mapping[str, Collection[object]], rows_max: int, *, folded: bool = False
    ) -> Sequence[Row]:
        """Nothing."""
        return []


def named(number: int, seed: int, chars: int = 100) -> list[str]:
    chosen = random.Random(seed)
    return ["".join(chosen.choices(string.ascii_lowercase, k=chars)) for _ in range(number)]


def wrong(number: int) -> Objects:
    """Keys of tenants that are not there, beside as many that are."""
    return {
        "tenants": [{"name": name, "organization": "Acme"} for name in named(number, 1)],
        "organizations": [{"name": "Acme"}],
        "api-keys": [{"name": "k", "tenant": name} for name in named(number, 2)],
    }


def right(number: int) -> Objects:
    return {
        "organizations": [{"name": "Acme"}],
        "tenants": [{"name": name, "organization": "Acme"} for name in named(number, 1)],
        "api-keys": [{"name": name, "tenant": name} for name in named(number, 1)],
    }


def one_name(number: int) -> Objects:
    """Many objects of one name, each of its own organization or time."""
    names = named(number, 3)
    return {
        "organizations": [{"name": name} for name in names],
        "tenants": [{"name": "Web", "organization": name} for name in names],
        "prices": [
            {"model": "m", "currency": "USD", "input": "1", "effective_from": f"{2000 + at}-01-01T00:00:00Z"}
            for at in range(number)
        ],
        "api-keys": [{"name": "k", "tenant": {"organization": name, "name": "Web"}} for name in names],
    }


def twice(number: int) -> Objects:
    """One object again and again."""
    return {"token-plans": [{"name": "Pro"}] * number}


async def planned(objects: Objects) -> None:
    found = read(objects)
    planner = Planner(cast("ApplyTransaction", Empty()), found, Actor("t", "admin"), [], datetime.now(UTC))
    with suppress(Unprocessable):
        await planner.plan(prune=False)


def calls_of(objects: Objects) -> int:
    """How many functions are called to plan objects, those of Python's own with them, in all threads."""
    calls = [0]

    def count(_: FrameType, event: str, __: Any) -> None:
        calls[0] += event in {"call", "c_call"}

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        asyncio.run(planned(objects))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # what ends it, as its documentation says
    return calls[0]


@pytest.mark.parametrize("made", [wrong, right, one_name, twice])
def test_twice_as_much_takes_no_more_than_twice_the_work(made: Any) -> None:
    calls_of(made(FEW))  # what is made once
    few, many = calls_of(made(FEW)), calls_of(made(2 * FEW))
    assert many < 2.2 * few, (few, many)


async def test_of_what_is_wrong_so_much_is_told_and_the_first_few_with_what_was_meant(api: Api) -> None:
    errors = await refused(api, wrong(FEW))
    assert len(errors) == ERRORS_MAX
    near = {
        "organizations": [{"name": "Acme"}],
        "tenants": [{"name": "Webshop", "organization": "Acme"}],
        "api-keys": [{"name": f"k{at}", "tenant": "Webshap"} for at in range(SUGGESTED_MAX + 1)],
    }
    told = [*(await refused(api, near)).values()]
    assert told == [
        *["there is no tenant named 'Webshap'; did you mean 'Webshop'?"] * SUGGESTED_MAX,
        "there is no tenant named 'Webshap'; no object here makes one",
    ]
    long = {"tenants": [{"name": "Web", "organization": "a" * (CHARS_MAX + 1)}]}
    assert "no object here makes one" in str(await refused(api, long))


async def test_who_may_write_none_of_it_is_told_so_before_anything_is_looked_at(api: Api) -> None:
    await api.make("organizations", name="Acme")
    reader, _ = await person(api, "readonly", "Acme")
    asked = {"objects": {"tenants": [{"name": 5}], "api-keys": "wrong"}, "digest": "0" * 64}
    for more in ({}, {"prune": True}):
        answer = await reader.post("configuration", {**asked, **more})
        assert (answer.status, "readonly" in answer.json["detail"]) == (403, True)
    operator, _ = await person(api, "operator", "Acme")
    assert (await operator.post("configuration", asked)).status == 422
    billed = {"objects": {"prices": []}, "digest": "0" * 64}
    assert (await operator.post("configuration", billed)).status == 403
