"""The features of this installation.

A feature is a folder of `gateway/features` with a record `FEATURE` in its `feature.py`. Without the folder
the feature is left out. The core imports no feature: it asks `features()` for their parts, whose types are
those of `Feature` in `gateway/features/record.py`.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import Any


@cache
def features() -> tuple[Any, ...]:
    """Return the record of every installed feature, by name."""
    package = import_module("gateway.features")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)
    return tuple(import_module(f"gateway.features.{name}.feature").FEATURE for name in names)
