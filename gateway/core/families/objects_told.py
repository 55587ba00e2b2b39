"""Objects an upstream keeps: the ids an answer tells of, which are then its organization's.

Only places where the API itself puts an id count: what a model or a tool wrote is no place.
"""

from __future__ import annotations

from collections.abc import Collection

from gateway.core.families.family import told_of
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Family


def may_tell(family: Family, answer: bytes) -> bool:
    """Whether a metered answer, or a part of one, is worth looking through for ids."""
    objects = FAMILIES[family].objects
    return objects is not None and (not objects.tell or any(mark in answer for mark in objects.tell))


def told(family: Family, document: object, named: Collection[str] = ()) -> tuple[str, ...]:
    """The ids of objects that an answer tells of, its own first; its request `named` these."""
    objects = FAMILIES[family].objects
    return () if objects is None else told_of(objects, document, named)
