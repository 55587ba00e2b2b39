"""Connections to a real Redis, and a verified world in it."""

from tests.counters.conftest import connect, world  # noqa: F401  # fixtures are found by their names here
