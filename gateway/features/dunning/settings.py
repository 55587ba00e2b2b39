"""The settings of dunning."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gateway.settings.feature_settings import FeatureSettings

ReminderDays = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(\d{1,3}(,\d{1,3}){0,9})?\Z",
        description="up to ten numbers of days with commas between, such as 7,14,21",
    ),
]


class DunningSettings(FeatureSettings, frozen=True, kw_only=True):
    """How many days after the due date a buyer is reminded, and is blocked; 0 is never."""

    dunning_reminder_days: ReminderDays = ""
    dunning_block_days: Annotated[int, msgspec.Meta(ge=0, le=365)] = 0
