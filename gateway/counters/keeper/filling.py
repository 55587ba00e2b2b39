"""All definitions of a partition brought into the counters: together, and none of them twice.

What is asked together is bounded, so that a keeper that fills the counters does not hold up its other loops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from gateway.core.accounts.definitions import AccountDefinition, KeyDefinition, OrganizationDefinition
from gateway.core.batched import batched
from gateway.counters.admission.stored import encode_terms, version_of
from gateway.counters.keeper.client import TOGETHER_MAX, UNVERIFIED
from gateway.counters.keeper.control import Control
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable


class Filling(Control):
    """Writes many definitions."""

    async def define_all(
        self, definitions: Sequence[AccountDefinition], version: int
    ) -> list[tuple[AccountDefinition, Exception]]:
        """Bring definitions of one partition into its accounts; newer ones stay. Which are refused, and why.

        CountersUnavailable where the partition is not verified.
        """
        calls = (
            packing.define(
                self.run_id_of(keys.partition_of(one.organization_id)), version, one,
                create=not getattr(one, "has_ledger", False),
            )
            for one in definitions
        )  # fmt: skip
        answers = await self.run_each("load", calls)
        if any(isinstance(one, bytes) and packing.code_of(one) == UNVERIFIED for one in answers):
            raise CountersUnavailable
        pairs = zip(definitions, answers, strict=True)
        return [(definition, error) for definition, error in pairs if isinstance(error, Exception)]

    async def write_terms(self, organizations: Sequence[OrganizationDefinition], version: int) -> None:
        """Write the terms of organizations of one partition where others stand there; newer ones stay."""
        names = [keys.organization_terms(one.organization_id) for one in organizations]
        written = [encode_terms(version, one.terms) for one in organizations]
        before = await self.states(names)
        wanted = {
            name: raw
            for name, raw, old in zip(names, written, before, strict=True)
            if old is None or (version_of(old) <= version and not _same_terms(old, raw))
        }
        sets = ((b"SET", name.encode(), raw, b"GET") for name, raw in wanted.items())
        for name, displaced in zip(wanted, await self.ask_together(sets), strict=True):
            if isinstance(displaced, bytes) and (newer := version_of(displaced)) > version:
                await self.newest(name, displaced, newer)

    async def identities(self, definitions: Sequence[KeyDefinition]) -> None:
        """Write whom credentials stand for, as far as those stand in our partitions."""
        ours = set(self.partitions)
        here = (one for one in definitions if keys.partition_of_digest(one.digest) in ours)
        for some in batched(here, TOGETHER_MAX):
            await self.ask_together(
                _by_slot(self.identity_written(one) for one in some if not one.of_tokens), everybodys=True
            )
            await self.of_subjects([one for one in some if one.of_tokens])


def _by_slot(commands: Iterable[tuple[bytes, ...]]) -> Iterator[tuple[bytes, ...]]:
    """The same commands; those that write what stays, one for each slot."""
    staying = defaultdict[bytes, list[bytes]](list)
    for command in commands:
        verb, name, *rest = command
        if verb == b"SET" and len(rest) == 1:
            staying[name[: name.index(b"}")]] += command[1:]
        else:
            yield command
    for written in staying.values():
        yield b"MSET", *written


def _same_terms(one: bytes, other: bytes) -> bool:
    """Whether they differ in the version alone, which is said first."""
    return one.partition(b",")[2] == other.partition(b",")[2]
