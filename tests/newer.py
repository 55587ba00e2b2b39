"""The program of the next layout, made of this one: each kind of what is stored has a field more.

`make` writes it into a folder, which is then a PYTHONPATH. It counts in a new field of a tenant, and fills
new ones of holds, settlements and entries, so whoever reads at the wrong place reads something else.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from gateway.core.accounts.outbox import VERSION
from gateway.core.layout import FORMS, LAYOUT
from tests.tree import ROOT

NEWER = LAYOUT + 1
PACKAGES = ("gateway", "lua", "persistence")
_SINCE = f'metadata={{"since": {NEWER}}}'

_READ = "        version, kind, flags, note, *said = HEAD.unpack_from(packed)\n"
_READ_BEFORE = f"""\
        if packed[:1] == bytes([{VERSION}]):
            at = HEAD.size - 8
            packed = bytes([VERSION]) + packed[1:at] + bytes(8) + packed[at:]
        version, kind, flags, note, *said, _ = HEAD.unpack_from(packed)
"""
_OPENED = "  if hold_credits > 0 then give_back_amounts("

# By file: what stands there once, and what stands there in the newer program.
CHANGES: dict[str, list[tuple[str, str]]] = {
    "gateway/core/layout.py": [(f"LAYOUT = {LAYOUT}\n", f"LAYOUT = {NEWER}\n")],
    "gateway/counters/layouts/states.py": [
        ("    version: int = 0\n", f"    version: int = 0\n    spare: int = field(default=0, {_SINCE})\n"),
        (
            "    limit: int = 0\n    total: int = -1\n",
            f"    limit: int = 0\n    settled: int = field(default=0, {_SINCE})\n    total: int = -1\n",
        ),
        (
            "    tokens: int = 0\n    key_tpm: int = 0\n",
            f"    tokens: int = 0\n    spare: int = field(default=0, {_SINCE})\n    key_tpm: int = 0\n",
        ),
        ("    waiting: int = 0\n", f"    spare: int = field(default=0, {_SINCE})\n    waiting: int = 0\n"),
        ("further=0@133", f"further=0@133 spare=0@{NEWER}"),
        ("calls, len(behind) // METER.size)", "calls, len(behind) // METER.size, 0)"),
        ("*_, expires, calls, further =", "*_, expires, calls, further, _ ="),
        ("unpack_from(whole)[-1])", "unpack_from(whole)[-2])"),
    ],
    "gateway/counters/layouts/packing.py": [
        ("over=0@130", f"over=0@130 spare=0@{NEWER}"),
        ('SETTLEMENT.part("service_id", "tombstone")', 'SETTLEMENT.part("spare", "tombstone")'),
        ("        settlement.service.id, caller.", "        5, settlement.service.id, caller."),
    ],
    "gateway/core/accounts/outbox.py": [
        (f"VERSION = {VERSION}\n", f"VERSION = {VERSION + 1}\n"),
        ("raw_tokens=0 requests=0,", f"raw_tokens=0 requests=0 spare=5@{NEWER},"),
        (_READ, _READ_BEFORE),
        ("packed[0] != VERSION", f"packed[0] not in ({VERSION}, VERSION)"),
    ],
    "lua/reserve.lua": [
        (
            "HOLD.span('', 'observed', {flags = hold_flags,",
            "HOLD.span('', 'observed', {spare = 5, flags = hold_flags,",
        )
    ],
    "lua/settle.lua": [(_OPENED, f"  tenant.settled = tenant.settled + 1\n{_OPENED}")],
}
# Both are programs of releases, whose forms have no second number.
RELEASED = {"gateway/core/layout.py": [(f'FORMS = "{FORMS}"\n', 'FORMS = ""\n')]}


# A tree between releases, whose forms have a second number of their own.
def unreleased(forms: str) -> dict[str, list[tuple[str, str]]]:
    return {"gateway/core/layout.py": [('FORMS = ""\n', f'FORMS = "{forms}"\n')]}


# How soon programs say that they run, and for how long one that is silent may run still.
SOONER = {
    "gateway/counters/keeper/program_registry.py": [
        ("SAID_EACH_S = 30.0", "SAID_EACH_S = 1.0"),
        ("SILENT_S_MAX = 90", "SILENT_S_MAX = 8"),
    ],
}


def make(folder: Path, *changes: dict[str, list[tuple[str, str]]]) -> Path:
    """This program with these changes, in a folder of its own."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    for changed in (RELEASED, *changes):
        for name, pairs in changed.items():
            text = (folder / name).read_text()
            for before, after in pairs:
                assert text.count(before) == 1, f"{name} has {text.count(before)} times {before!r}"
                text = text.replace(before, after)
            (folder / name).write_text(text)
    return folder
