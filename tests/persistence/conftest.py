"""Fixtures of these tests: see `tests.persistence.migrated`."""

from tests.persistence.migrated import migrated, template

__all__ = ["migrated", "template"]
