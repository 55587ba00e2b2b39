"""The package's extras: which libraries each brings, and the one way to load them where they are needed.

`pyproject.toml` says from where they come. Without an extra the rest runs as usual.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from gateway.errors import MissingExtra

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
    "websockets": ("wsproto",),
}
_OURS = ("gateway", "persistence")


def is_installed(extra: str) -> bool:
    """Whether all libraries of an extra are there; none is loaded."""
    return all(find_spec(name) is not None for name in LIBRARIES[extra])


@contextmanager
def loading(extra: str) -> Iterator[None]:
    """Import libraries of an extra within this: `MissingExtra` where one is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OURS:
            raise
        raise MissingExtra(extra) from error
