"""The settings of the usage feed."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from gateway.errors import SettingError
from gateway.settings.feature_settings import FeatureSettings, Needs
from gateway.settings.urls import FeedUrl
from gateway.settings.value_types import KEEPERS, Token

CODE_CHARS_MAX = 128
FeedCode = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=CODE_CHARS_MAX,
        description=f"1 to {CODE_CHARS_MAX} characters that can be seen",
        extra={"holds": str.isprintable},
    ),
]


class UsageFeedSettings(FeatureSettings, frozen=True, kw_only=True):
    """Who hears of usage, where, and by which code of meters and billable metrics."""

    usage_feed: Literal["off", "lago", "openmeter", "webhook", "file"] = "off"
    usage_feed_url: FeedUrl = ""
    usage_feed_token: Token = ""
    usage_feed_code: FeedCode = "tollkeeper_use"
    usage_feed_waiting_max: Annotated[int, msgspec.Meta(ge=1_000, le=100_000_000)] = 1_000_000

    NEEDS: ClassVar[Needs] = {
        "usage_feed_url": ("usage_feed", KEEPERS),
        "usage_feed_token": ("usage_feed", KEEPERS),
    }

    def check_together(self, prefix: str) -> None:
        """Raise `SettingError` if the feed has no URL, or one of another kind."""
        feed, url = self.usage_feed, self.usage_feed_url
        if feed != "off" and not url:
            right = "file:///path" if feed == "file" else "https://host:port"
            raise SettingError(f"{prefix}USAGE_FEED_URL is not set: expected {right}, where {feed} is")
        if feed != "off" and (feed == "file") != url.startswith("file:"):
            right = "file:///path for file, and https://host:port for every other feed"
            reason = f"{prefix}USAGE_FEED_URL is not valid for {prefix}USAGE_FEED={feed}"
            raise SettingError(f"{reason}: expected {right}")
