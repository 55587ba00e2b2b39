"""The base of the settings of a feature, which stand in its folder and are named by its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec

# Settings that have no effect without another one, and the roles that read them.
Needs = Mapping[str, tuple[str, tuple[str, ...]]]


class FeatureSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one feature.

    A field is the setting `TOLLKEEPER_<NAME>`; its type says what is valid. The values are texts, numbers, true and false,
    since workers receive them as JSON. A secret is given to keepers alone, and may change while they run.

        class DunningSettings(FeatureSettings, frozen=True, kw_only=True):
            dunning_block_days: Annotated[int, msgspec.Meta(ge=0, le=365)] = 0
    """

    # The extra (optional dependency) that a keeper needs where a setting has a value.
    EXTRAS: ClassVar[Mapping[str, str]] = {}
    NEEDS: ClassVar[Needs] = {}
    # Settings with files that a keeper first opens when it needs them; it starts without.
    OPENED_LATER: ClassVar[tuple[str, ...]] = ()

    def check_together(self, prefix: str) -> None:
        """Raise `SettingError` for a combination that is not valid; `prefix` is that of variables."""
