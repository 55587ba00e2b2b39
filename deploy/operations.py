#!/usr/bin/env python3
"""Write the operations of the vendors' SDKs into the list of operations, with their query parameters.

`python deploy/operations.py` adds what the list lacks as `refused`, the answer to an unknown path; with `--check`
it only prints these rows. A test fails for a path or parameter of an SDK that has no row, and for a row that says
what is not so. Only SDKs that are installed are read.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

FILE: Final = Path(__file__).resolve().parents[1] / "tests" / "http" / "routing" / "operations.txt"
_VERBS: Final = {"_get_api_list": "GET"} | {
    f"_{verb}": verb.upper() for verb in ("get", "post", "put", "patch", "delete")
}
_PARAMETER: Final = re.compile(r"\{[^}]*\}")
# Parameters of google-genai that are whole names, with the collection in front, by module.
_WHOLE: Final = re.compile(r"\{(?:model|name|parent|operationName|resourceName|file_search_store_name)\}")
_HOLDERS: Final = {
    "caches": "cachedContents", "file_search_stores": "fileSearchStores", "files": "files",
    "models": "models", "operations": "models/{model}/operations", "tunings": "tunedModels",
}  # fmt: skip
REFUSED: Final = "!"  # in front of a query parameter that is refused on an operation that passes
_VERSION: Final = "/{api_version}"
_UPLOAD: Final = "/upload"


class Sdk(NamedTuple):
    """An SDK: its package, the part of the list that its operations are in, and the front of its paths."""

    package: str
    part: str
    front: str


SDKS: Final = (
    Sdk("openai", "OpenAI | default", "/v1"), Sdk("anthropic", "Anthropic | default", ""),
    Sdk("google.genai", "Gemini | default", "/v1beta"),
)  # fmt: skip
# An operation as it stands in the list (`GET /v1/files/x1`), and its query parameters.
Operations = Mapping[str, frozenset[str]]


@cache
def operations_of(sdk: Sdk) -> Operations:
    """Return the operations in the source of an SDK, each with the names of its query parameters."""
    spec = find_spec(sdk.package)
    assert spec is not None
    assert spec.origin is not None
    found: dict[str, set[str]] = {}
    google = sdk.package == "google.genai"
    for file in sorted(Path(spec.origin).parent.rglob("*.py")):
        if "tests" in file.parts:
            continue
        tree = ast.parse(file.read_text("utf-8"))
        for operation, names in _of_google(tree, file) if google else _of_resources(tree):
            verb, _, path = operation.partition(" ")
            path, _, query = path.partition("?")
            fixed = {pair.partition("=")[0] for pair in query.split("&") if pair}
            front = _UPLOAD + sdk.front if path.startswith(f"{_UPLOAD}/") else sdk.front
            whole = _named(front + (path.removeprefix(_UPLOAD) if front != sdk.front else path))
            found.setdefault(f"{verb} {whole}", set()).update(names, fixed)
    return {operation: frozenset(names) for operation, names in found.items()}


def _named(path: str) -> str:
    """Return a path with names for its parameters: `m` for a model, else `x1`, `x2` and so on."""
    numbers = iter(range(1, 9))
    named = _PARAMETER.sub(lambda found: "m" if found[0] == "{model}" else f"x{next(numbers)}", path)
    return re.sub("/w(?=ork/)", "/%77", named)  # else it looks like a folder of a machine


def _of_resources(tree: ast.Module) -> Iterator[tuple[str, set[str]]]:
    """Yield the operations of a module that Stainless' generator has written (OpenAI, Anthropic)."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or not call.args:
            continue
        verb, path = _VERBS.get(call.func.attr), call.args[0]
        if isinstance(path, ast.Call) and path.args:  # of `path_template`
            path = path.args[0]
        if verb and isinstance(path, ast.Constant) and str(path.value).startswith("/"):
            yield f"{verb} {path.value}", set(_query_names(call))


def _query_names(call: ast.Call) -> Iterator[str]:
    for part in ast.walk(call):
        if isinstance(part, ast.keyword) and part.arg == "query":
            for each in ast.walk(part.value):
                if isinstance(each, ast.Dict):
                    yield from (str(key.value) for key in each.keys if isinstance(key, ast.Constant))


def _of_google(tree: ast.Module, file: Path) -> Iterator[tuple[str, set[str]]]:
    """Yield the operations of a module of google-genai for the Gemini API, without those of Vertex AI."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            said = {part.arg: part.value for part in call.keywords}
            method, path = said.get("method"), said.get("path")
            if isinstance(method, ast.Constant) and isinstance(path, ast.Constant):
                yield f"{method.value} {str(path.value).replace(_VERSION, '', 1)}", set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        verbs = [
            call.args[0].value
            for call in ast.walk(function)
            if isinstance(call, ast.Call) and len(call.args) > 2 and isinstance(call.args[0], ast.Constant)
            and isinstance(call.func, ast.Attribute) and "request" in call.func.attr
        ]  # fmt: skip
        branch = [part for part in ast.walk(function) if isinstance(part, ast.If) and _asks_for_vertex(part)]
        for part in [each for one in branch for each in one.orelse]:
            for path in ast.walk(part):
                if isinstance(path, ast.Assign) and isinstance(path.value, ast.Constant) and verbs:
                    whole = _whole("/" + str(path.value.value), file.stem)
                    yield f"{str(verbs[0]).upper()} {whole.replace(_VERSION, '', 1)}", set()


def _asks_for_vertex(part: ast.If) -> bool:
    return "vertexai" in ast.dump(part.test)


def _whole(path: str, module: str) -> str:
    """Return a path of google-genai with the collection in front of each parameter that is a whole name."""
    if "{model}" in path:
        return path.replace("{model}", "models/{model}")
    holder = "fileSearchStores" if "{parent}" in path else _HOLDERS.get(module)
    holder = "fileSearchStores/{store}/documents" if module == "documents" and "{name}" in path else holder
    return _WHOLE.sub(f"{holder}/{{id}}", path) if holder else path


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or print what the list lacks, and return the exit status."""
    known = FILE.read_text()
    if "--check" not in (sys.argv[1:] if arguments is None else arguments):
        FILE.write_text(updated(known))
        return 0
    new = new_rows(known)
    sys.stdout.write("".join(f"{row} is new\n" for row in new))
    return 1 if new else 0


def new_rows(known: str) -> list[str]:
    """Return the rows that a list lacks, or has with other query parameters."""
    rows = set(known.splitlines())
    return [row for row in updated(known).splitlines() if row not in rows]


def updated(rows: str) -> str:
    """Return the list with the operations and query parameters of SDKs that it lacks."""
    lines, part = list[str](), ""
    known = {sdk.part: dict(operations_of(sdk)) for sdk in SDKS if _is_installed(sdk.package)}
    for line in [*rows.splitlines(), ""]:
        if line.startswith("["):
            part = line.strip("[]")
        elif not line and part in known:
            rest = known.pop(part)
            lines += [_row("refused", operation, names) for operation, names in sorted(rest.items())]
        elif line and part in known:
            outcome, verb, path, *query = line.split()
            refused = {name for name in "".join(query)[1:].split(",") if name.startswith(REFUSED)}
            names = known[part].pop(f"{verb} {path}", frozenset())
            names = frozenset(REFUSED + name if REFUSED + name in refused else name for name in names)
            lines.append(_row(outcome, f"{verb} {path}", names))
            continue
        lines.append(line)
    return "\n".join(lines).rstrip() + "\n"


def _is_installed(package: str) -> bool:
    return all(find_spec(name) is not None for name in dict.fromkeys((package.partition(".")[0], package)))


def _row(outcome: str, operation: str, names: frozenset[str]) -> str:
    return " ".join([outcome, operation, *(["?" + ",".join(sorted(names))] if names else [])])


if __name__ == "__main__":
    sys.exit(main())
