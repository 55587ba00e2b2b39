"""Whose rows a realm sees, as the condition of each table says."""

from __future__ import annotations

from gateway.core.accounts.administration import Realm
from persistence import tables
from persistence.entity import EVERYBODYS, owned


def test_a_key_sees_its_own_rows_and_none_of_a_table_that_names_no_key() -> None:
    others = {*EVERYBODYS, tables.api_key, tables.call, tables.tenant}
    for table in set(tables.metadata.tables.values()) - others:
        own = f"{table.name}.api_key_id = :api_key_id_1" if "api_key_id" in table.c else "false"
        assert str(owned(table, Realm(1, 2, 3))) == own
