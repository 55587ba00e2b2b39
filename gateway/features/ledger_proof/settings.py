"""The setting of the ledger proof."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from gateway.settings.feature_settings import FeatureSettings
from gateway.settings.value_types import FilePath


class LedgerProofSettings(FeatureSettings, frozen=True, kw_only=True):
    """The key that signs the heads; without one nothing is signed."""

    ledger_key_file: FilePath = ""

    EXTRAS: ClassVar[Mapping[str, str]] = {"ledger_key_file": "proof"}
