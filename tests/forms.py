"""The forms in which data is stored in Redis: what scripts and Python, and programs side by side, must agree on.

`tests/counters/layouts/released.json` has the forms of each release by the number of its layout. No released form ever
changes. Forms that no release has carry a second number, `FORMS` of `gateway/core/layout.py`, by which programs tell
each other apart. `python -m tests.forms` says what is wrong, `--write` writes this number, and `--release` also
freezes today's forms as those of a release.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from gateway.core import layout
from gateway.core.layout import LAYOUT, Layout
from gateway.counters.layouts import lua
from gateway.counters.layouts.packing import LAYOUTS
from tests.tree import ROOT

RELEASED = ROOT / "tests/counters/layouts/released.json"
NUMBERS = ROOT / "gateway/core/layout.py"
# Arguments, answers and opened records of scripts: each program has its own scripts. Any other form may be stored.
UNSTORED = frozenset({
    "WINDOW", "CODE", "NEED", "STEP", "BUDGETS", "FREES", "RESERVE", "ADMITTED", "REFUSED", "SETTLEMENT", "SETTLED", "GONE",
    "EXTEND", "EXTENDED", "LEASE", "LEASED", "NO_LEASE", "GRANT", "GRANTED", "LOAD", "PLAN", "DEFINE_KEY", "DEFINE_USER",
    "DEFINE_TENANT", "DEFINE_ORGANIZATION", "PARK", "PARKED", "STREAM_ID", "RUN_CALL", "RAN",
})  # fmt: skip
# Constants of the scripts that no stored value has: bounds, sizes that follow from forms, codes of arguments and answers.
_NO_FORM = re.compile(
    r"LAYOUT|TODAY|EARLIER|_.*|.*_(MAX|MS|S|DAYS|BYTES|SIZE|FORM|AT)|(VERDICT|SETTLED|KIND|SCOPE|VERB|RUN|STEP)_.*"
)

Forms = Mapping[str, Mapping[str, str]]


def forms_of(number: int, layouts: Sequence[Layout] = LAYOUTS) -> Forms:
    """Return a digest of each stored form in the layout `number`, and the value of each flag."""
    stored = {one.name: _fields(one, number) for one in layouts if one.name not in UNSTORED}
    flags = {name: value for name, value in lua.constants(layouts).items() if not _NO_FORM.fullmatch(name)}
    return {"forms": {name: _digest(fields) for name, fields in stored.items()}, "flags": flags}


def _fields(one: Layout, number: int) -> list[tuple[str, str, int]]:
    """Return name, type and place of each field that a value of the layout `number` has."""
    found, at = list[tuple[str, str, int]](), 0
    for field in one.fields:
        if field.since <= number:
            found.append((field.name, field.kind.lua, at))
            at += field.kind.size
    return found


def _digest(value: object) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def second_number(released: Mapping[str, Forms], today: Forms | None = None) -> str:
    """Return the second number of this tree: "" if its forms are those of a release."""
    today = forms_of(LAYOUT) if today is None else today
    return "" if released.get(str(LAYOUT)) == today else _digest(today)


def changed_forms(released: Mapping[str, Forms]) -> list[str]:
    """Return a sentence for each released form or flag that this tree has otherwise."""
    return [
        f"{kind[:-1]} {name} of layout {number} is released, and was changed: put it back, and add a field under a new"
        " number (CONTRIBUTING.md, A field of a state or a hold); if its names alone changed, write"
        f" {forms_of(int(number))[kind].get(name)} into {RELEASED.relative_to(ROOT)}"
        for number, known in released.items()
        for kind, values in known.items()
        for name, value in values.items()
        if forms_of(int(number))[kind].get(name) != value
    ]


def faults() -> list[str]:
    """Return what is wrong with the forms of this tree, a sentence each."""
    released = read_released()
    if (number := second_number(released)) != layout.FORMS:
        told = f'the forms of this tree have the second number "{number}", not "{layout.FORMS}"'
        return [*changed_forms(released), f"{told}: python -m tests.forms --write"]
    return changed_forms(released)


def read_released() -> dict[str, Any]:
    return dict(json.loads(RELEASED.read_text()))


def write(released: Mapping[str, Forms], file: Path = NUMBERS) -> None:
    text, count = re.subn(r'(?m)^FORMS = ".*"$', f'FORMS = "{second_number(released)}"', file.read_text())
    assert count == 1, "one line has the second number"
    file.write_text(text)


def main() -> int:
    """Print what is wrong, or write what is asked; return the exit status."""
    parser = argparse.ArgumentParser(description="The forms in which data is stored in Redis.")
    parser.add_argument("--write", action="store_true", help="write the second number")
    parser.add_argument("--release", action="store_true", help="freeze today's forms as those of a release")
    asked, released = parser.parse_args(), read_released()
    if asked.release:
        released.setdefault(str(LAYOUT), forms_of(LAYOUT))
        RELEASED.write_text(json.dumps(released, indent=1) + "\n")
    if asked.write or asked.release:
        write(released)
        return 0
    found = faults()
    sys.stdout.write("".join(f"{fault}\n" for fault in found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
