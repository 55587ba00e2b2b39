"""The setting of an invoice's documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from gateway.settings.feature_settings import FeatureSettings
from gateway.settings.value_types import FilePath


class DocumentSettings(FeatureSettings, frozen=True, kw_only=True):
    """What the PDF of an invoice shows besides its text."""

    invoice_logo: FilePath = ""

    EXTRAS: ClassVar[Mapping[str, str]] = {"invoice_logo": "documents"}
