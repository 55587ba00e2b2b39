"""Writes all definitions of a partition: in bulk, and only those that differ.

A batch is bounded, so that a keeper that fills the counters does not delay its other loops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from gateway.core.accounts.definitions import AccountDefinition, KeyDefinition, OrganizationDefinition
from gateway.core.text import batched
from gateway.counters.admission.stored import encode_terms, version_standing
from gateway.counters.keeper.client import TOGETHER_MAX, UNVERIFIED
from gateway.counters.keeper.control_writes import ControlClient
from gateway.counters.layouts import packing
from gateway.counters.layouts.packing import is_as_defined
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.errors import CountersUnavailable


class BulkLoader(ControlClient):
    async def define_all(
        self, definitions: Sequence[AccountDefinition], version: int
    ) -> list[tuple[AccountDefinition, Exception]]:
        """Write those definitions of one partition that differ from the stored ones; return refused ones with
        errors.

        A newer stored definition is left unchanged. CountersUnavailable if the partition is not verified.
        """
        refused: list[tuple[AccountDefinition, Exception]] = []
        for some in batched(definitions, TOGETHER_MAX):
            wanted = await self._not_as_defined(some, version)
            answers = await self.run_each("load", (call for _, call in wanted))
            if any(isinstance(answer, bytes) and packing.code_of(answer) == UNVERIFIED for answer in answers):
                raise CountersUnavailable
            pairs = zip(wanted, answers, strict=True)
            refused += [(item, error) for (item, _), error in pairs if isinstance(error, Exception)]
        return refused

    async def _not_as_defined(
        self, definitions: Sequence[AccountDefinition], version: int
    ) -> list[tuple[AccountDefinition, packing.Call]]:
        """Return definitions whose stored state is missing or differs, with the call that writes it."""
        calls = [
            packing.define(
                self.run_id_of(keys.partition_of(definition.organization_id)), version, definition,
                create=not getattr(definition, "has_ledger", False),
            )
            for definition in definitions
        ]  # fmt: skip
        before = await self.states([names[1] for names, _ in calls])
        return [
            (definition, call)
            for definition, call, stored in zip(definitions, calls, before, strict=True)
            if not is_as_defined(type(definition), call[1][1], stored)
        ]

    async def write_terms(self, organizations: Sequence[OrganizationDefinition], version: int) -> None:
        """Store the terms of organizations of one partition, where they differ; newer stored terms remain."""
        names = [keys.organization_terms(organization.organization_id) for organization in organizations]
        written = [encode_terms(version, organization.terms) for organization in organizations]
        before = await self.states(names)
        wanted = {
            name: raw
            for name, raw, old in zip(names, written, before, strict=True)
            if old is None
            or (version_standing(old) <= version and old.partition(b",")[2] != raw.partition(b",")[2])
        }
        sets = ((b"SET", name.encode(), raw, b"GET") for name, raw in wanted.items())
        for name, displaced in zip(wanted, await self.ask_together(sets), strict=True):
            if isinstance(displaced, bytes) and (newer := version_standing(displaced)) > version:
                await self.newest(name, displaced, newer)

    async def identities(self, definitions: Sequence[KeyDefinition]) -> None:
        """Store the identities of credentials in this server's partitions, where they differ."""
        ours = set(self.partitions)
        here = (key for key in definitions if keys.partition_of_digest(key.digest) in ours)
        for some in batched(here, TOGETHER_MAX):
            commands = await self._not_there(self.identity_written(key) for key in some if not key.of_tokens)
            await self.ask_together(_by_slot(commands), everybodys=True)
            await self.of_subjects([key for key in some if key.of_tokens])

    async def _not_there(self, commands: Iterable[tuple[bytes, ...]]) -> list[tuple[bytes, ...]]:
        """Return those commands that would change their key, as each write causes a message to gateways."""
        by_slot = defaultdict[bytes, list[tuple[bytes, ...]]](list)
        for command in commands:
            by_slot[_slot(command[1])].append(command)
        asked = ((b"MGET", *(command[1] for command in its)) for its in by_slot.values())
        stored = [
            answer for some in await self.ask_together(asked, everybodys=True) for answer in _answered(some)
        ]
        all_of = [command for its in by_slot.values() for command in its]
        return [item for item, before in zip(all_of, stored, strict=True) if _differs(item, before)]


def _answered(several: Reply) -> list[Reply]:
    assert isinstance(several, list)
    return several


def _differs(command: tuple[bytes, ...], stored: Reply) -> bool:
    """Return whether a command on an identity's key would change the value `stored` there, or its expiry."""
    if command[0] == b"DEL":
        return stored is not None
    return stored != command[2] or b"PX" in command[3:]


def _slot(name: bytes) -> bytes:
    return name[: name.index(b"}")]


def _by_slot(commands: Iterable[tuple[bytes, ...]]) -> Iterator[tuple[bytes, ...]]:
    """Yield the commands, with plain SETs of one slot joined into one MSET."""
    staying = defaultdict[bytes, list[bytes]](list)
    for command in commands:
        verb, name, *rest = command
        if verb == b"SET" and len(rest) == 1:
            staying[_slot(name)] += command[1:]
        else:
            yield command
    for written in staying.values():
        yield b"MSET", *written
