"""Which path of the Admin API was probably meant, where nothing is served at the one that was asked."""

from __future__ import annotations

import difflib
import re

from aiohttp import web

# Longer ones are not compared: nobody typed them.
PATH_CHARS_MAX = 128
# How much of a path has to be right, of 1.
ALIKE_MIN = 0.75
_NUMBER = re.compile(r"(?<=/)\d+(?=/|$)")


def nearest(app: web.Application, path: str) -> str:
    """The template of a path that is near, as the API's description has it; empty where none is."""
    if len(path) > PATH_CHARS_MAX:
        return ""
    asked = _NUMBER.sub("{id}", path.rstrip("/"))
    served = {resource.canonical for resource in app.router.resources()}
    alike = [one for one in sorted(served) if one.count("/") == asked.count("/")]
    found = difflib.get_close_matches(asked, alike, 1, ALIKE_MIN)
    return found[0] if found else ""
