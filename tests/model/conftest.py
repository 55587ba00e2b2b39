"""Fixtures of these tests: see `tests.persistence.migrated`."""

from tests.persistence.migrated import shared

__all__ = ["shared"]
