"""Ledger proof: rows of accounts are hashed into trees, whose heads a keeper signs every hour."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gateway.features.ledger_proof.settings import LedgerProofSettings
from gateway.features.record import Feature, lazy

if TYPE_CHECKING:
    from gateway.run.keeper_parts import KeeperParts, Work

LOOK_S = 60.0


def _work(parts: KeeperParts) -> Work | None:
    """Return the loop that signs ledger heads, or None without a key."""
    key_file = parts.settings.select(LedgerProofSettings).ledger_key_file
    if not key_file:
        return None
    from gateway.background.loops import Loop, call  # of keepers that sign alone
    from gateway.features.ledger_proof.keys import read_key
    from gateway.run.keeper_parts import Work
    from persistence.ledger_proof import LedgerSigner, age_of_head

    signer = LedgerSigner(parts.engine, read_key(key_file), parts.log)
    return Work(
        loops=(Loop("ledger heads", LOOK_S, (call(signer.sign_if_due),)),),
        gauges=(partial(age_of_head, parts.engine),),
    )


FEATURE = Feature(
    name="ledger_proof",
    tables=("ledger_head", "ledger_segment"),
    settings=LedgerProofSettings,
    metrics=(
        ("ledger_head_age_seconds", "gauge", "For how long no head of the ledger proof was signed.", ()),
    ),
    admin_commands=lazy("gateway.features.ledger_proof.command:add_to_ledger"),
    work=_work,
)
