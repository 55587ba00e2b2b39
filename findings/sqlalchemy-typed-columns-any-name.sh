#!/bin/sh
# SQLAlchemy 2.1.9, mypy 2.4.1: a misspelt column of a table with typed columns is no error.
#
# Expected: `Table` with a class of `TypedColumns` lets mypy name a column that the class does not declare.
# Seen:     `account.c.nmae` passes `mypy --strict` as Column[Any], and fails when the line runs. `TypedColumns` inherits a
#           `__getattr__` that accepts any name. A subclass with `__getattr__: None` in a stub makes the name an error.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check sqlalchemy==2.1.9 mypy==2.4.1
cat > plain.py <<'PYTHON'
from sqlalchemy import Column, Integer, MetaData, Table, Text, TypedColumns


class AccountColumns(TypedColumns):
    id = Column(Integer, primary_key=True)
    name = Column(Text)


account = Table("account", MetaData(), AccountColumns)


def misspelt() -> str:
    return str(account.c.nmae)
PYTHON
sed 's/^    id = Column/    if TYPE_CHECKING:\n        __getattr__: None  # type: ignore[assignment, misc]\n    id = Column/; 1i from typing import TYPE_CHECKING' plain.py > strict.py
venv/bin/python -c '
import plain
try:
    plain.misspelt()
except AttributeError as error:
    print("when it runs:", error)
else:
    raise SystemExit("the misspelt column was found")'
venv/bin/mypy --strict plain.py
! venv/bin/mypy --strict strict.py > said
cat said
grep -q '"AccountColumns" has no attribute "nmae"' said
