"""The settings of agents that sign in."""

from __future__ import annotations

from typing import ClassVar

from gateway.settings.feature_settings import FeatureSettings, Needs
from gateway.settings.urls import OriginUrl
from gateway.settings.value_types import KEEPERS, FilePath


class AgentsSettings(FeatureSettings, frozen=True, kw_only=True):
    """Whether agents may sign in, what they are told, and where gateways pass their requests on to."""

    agents: bool = False
    agents_settings_file: FilePath = ""
    agents_keeper_url: OriginUrl = ""
    agents_collector_url: OriginUrl = ""

    # `up` knows its own keeper's URL.
    NEEDS: ClassVar[Needs] = {
        "agents_settings_file": ("agents", KEEPERS), "agents_collector_url": ("agents_keeper_url", ("serve",)),
    }  # fmt: skip
    OPENED_LATER: ClassVar[tuple[str, ...]] = ("agents_settings_file",)
