"""The PostgreSQL door: tables, migrations, the ledger writer, one file a subject."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

# SQLAlchemy's package of asyncio connections imports its object mapper, which nothing here uses: a quarter of
# the library's time to load, and 8 MB. So this one package is loaded without its `__init__.py`; its modules
# are unchanged. `tests/test_layers.py` fails if the mapper is imported again.
_ASYNC = "sqlalchemy.ext.asyncio"


class _WithoutMapper(MetaPathFinder, Loader):
    """Imports `sqlalchemy.ext.asyncio` with only the three names that are used here."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        there = [str(Path(folder) / "asyncio") for folder in path or ()]
        if fullname != _ASYNC or not any((Path(folder) / "engine.py").is_file() for folder in there):
            return None
        spec = ModuleSpec(fullname, self, is_package=True)
        spec.submodule_search_locations = there
        return spec

    def exec_module(self, module: ModuleType) -> None:
        from sqlalchemy.ext.asyncio import engine  # noqa: PLC0415  # it is loaded once it is asked for

        for name in ("AsyncConnection", "AsyncEngine", "create_async_engine"):
            setattr(module, name, getattr(engine, name))


if _ASYNC not in sys.modules:
    sys.meta_path.insert(0, _WithoutMapper())
