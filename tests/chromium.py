"""The Chromium of this machine; Debian's is installed where that can be done."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
INSTALL_S_MAX = 240


def chromium() -> str:
    """Where it is; without one a test is skipped."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "timeout": INSTALL_S_MAX}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(["apt-get", *command], check=False, capture_output=True, **quiet)  # type: ignore[call-overload]  # known options
        found = shutil.which("chromium")
    if found is None:
        pytest.skip("there is no Chromium, and Debian's package could not be installed")
    return found
