"""What the tree costs, counted: `python -m tests.numbers`.

A noun should have one definition. How many files name one field of a token plan, from the API to the scripts,
says how far that is true.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import grimp

from gateway.core.accounts.call_facts import CallFacts
from gateway.http.server.exchange import Exchange
from tests.house import source_files
from tests.tree import ROOT, texts
from tests.walk import walk

PRODUCT = ("gateway/", "persistence/", "lua/")
CODE = (".py", ".lua", ".sql", ".html", ".css", ".js")
# A field of a plan that everything has: the API, the table, a control write, a state, a rule of the scripts.
PLAN_FIELD = "rollover"
FOLDERS_A_FEATURE_MAX = 4
FAMILY = "anthropic"
FOLDER = "gateway/core/families/"
# The demo answers as providers do; a seed that was applied is never changed; who makes a model, and
# what it costs, is data of prices; a provider's report of the month is no API that is served; the command
# line asks people for a provider.
NO_PART = (
    "gateway/local/", "persistence/schema/migrations/", "persistence/schema/seed.sql",
    "gateway/core/billing/price_book.py", "gateway/core/billing/sellers.py",
    "gateway/features/litellm_import/", "gateway/features/provider_report/", "gateway/features/vendor_admin/",
    "gateway/cli/",
)  # fmt: skip


def files_naming(word: str) -> list[str]:
    """Product files that have the word, however it is spelled; what is only told people does not count."""
    return [name for name in code() if word in texts()[name].lower()]


def files_of_a_family() -> list[str]:
    """Where one API family stands: its folder as one, and each file elsewhere that names it."""
    named = [name for name in files_naming(FAMILY) if not name.startswith(NO_PART)]
    return sorted({FOLDER + FAMILY if name.startswith(FOLDER + FAMILY) else name for name in named})


def code() -> list[str]:
    """Every file of the product that is code."""
    return [name for name in texts() if name.startswith(PRODUCT) and name.endswith(CODE)]


def lines(folder: str) -> int:
    """Lines of code in a folder of the product, comments included, empty ones not."""
    files = [name for name in code() if name.startswith(folder)]
    return sum(1 for name in files for line in texts()[name].splitlines() if line.strip())


def root_files() -> list[str]:
    """Files at the root of `gateway/`."""
    return sorted(path.name for path in (ROOT / "gateway").iterdir() if path.is_file())


def base_packages() -> list[str]:
    """The packages that a gateway's install brings; those of one system or of older Pythons count."""
    return packages_of("deploy/requirements.lock")


def packages_of(lock: str) -> list[str]:
    """The packages of a lock, by its path."""
    return re.findall(r"^([a-z0-9-]+)==", (ROOT / lock).read_text(), re.MULTILINE)


def layers() -> list[str]:
    """The layers that import-linter keeps apart."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [found] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return list(found)


def classes_named_twice() -> dict[str, list[str]]:
    """Names of classes that stand in several modules of the product: each should mean one thing."""
    found: dict[str, list[str]] = {}
    for name in code():
        for declared in (
            re.findall(r"^class (\w+)", texts()[name], re.MULTILINE) if name.endswith(".py") else ()
        ):
            found.setdefault(declared, []).append(name)
    return {declared: names for declared, names in found.items() if len(names) > 1}


def folders_of(feature: str) -> list[str]:
    """Where a feature stands: its folder in `gateway/features`, its SQL, its page, its tests."""
    names = {feature, feature.replace("_", "-")}
    found = set()
    for file in texts():
        parts = file.split("/")
        if parts[0] not in {"gateway", "persistence", "lua", "docs", "tests"}:
            continue
        for at, part in enumerate(parts):
            if part.partition(".")[0] in names:
                found.add("/".join([*parts[:at], part.partition(".")[0]]))
                break
    return sorted(found)


@cache
def imports() -> grimp.ImportGraph:
    """Who imports whom, for type checking too."""
    return grimp.build_graph("gateway", "persistence", cache_dir=None)


@cache
def circles() -> list[set[str]]:
    """Modules that import each other in a circle, for type checking too, by whatever they name."""
    graph = imports()
    found: list[set[str]] = []
    for module in sorted(graph.modules):
        both_ways = graph.find_downstream_modules(module) & graph.find_upstream_modules(module)
        if both_ways and not any(module in circle for circle in found):
            found.append(both_ways | {module})
    return found


def modules_with(*words: str) -> Iterator[tuple[str, ast.Module]]:
    """Yield the syntax trees of the modules of the product that have one of these words."""
    for name, text in texts().items():
        if name.startswith(PRODUCT) and name.endswith(".py") and any(word in text for word in words):
            yield name, source_files()[name].tree


def functions_with(parameter: str) -> list[str]:
    """Functions of the product that have a parameter of this name."""
    found = list[str]()
    for name, tree in modules_with(f"{parameter}: "):
        for one in ast.walk(tree):
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                named = {each.arg for each in (*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs)}
                found += [f"{name}:{one.name}"] if parameter in named else []
    return found


def makers_of_facts() -> list[str]:
    """Where all facts of a use are put together, but for the module that declares how they travel."""
    fields = set(CallFacts.__struct_fields__)
    found = list[str]()
    for name, tree in modules_with("CallFacts", "write_facts"):
        for one in ast.walk(tree):
            values, named = list[ast.expr](), False
            if isinstance(one, ast.Tuple):  # by their places
                values = one.elts
                known = {each.attr for each in values if isinstance(each, ast.Attribute)} & fields
                named = len(values) == len(fields) and len(known) > len(fields) // 3
            elif isinstance(one, ast.Call) and ast.unparse(one.func) == "CallFacts":
                named = len(one.args) + len(one.keywords) > 1
            if named and name != "gateway/core/accounts/call_facts.py":
                found.append(f"{name}:{one.lineno}")  # type: ignore[attr-defined]  # both kinds have lines
    return found


def makers_of_prices() -> list[str]:
    """Modules above the core that say what a use costs by a price."""
    return [
        name
        for name, tree in modules_with("cost_nano(")
        if not name.startswith("gateway/core/")
        and any(isinstance(one, ast.Call) and ast.unparse(one.func) == "cost_nano" for one in ast.walk(tree))
    ]


def makers_of_admissions() -> list[str]:
    """Modules that ask for the prices of a use, but for the one that finds them."""
    return [
        name
        for name, tree in modules_with("prices_of(")
        if name.startswith("gateway/") and name != "gateway/calls/prices.py"
        and any(isinstance(one, ast.Call) and ast.unparse(one.func) == "prices_of" for one in ast.walk(tree))
    ]  # fmt: skip


@dataclass
class Carrier:
    """A class whose objects are handed on and changed: its `fields`, the functions that take it, and `writes`."""

    name: str
    module: str
    fields: frozenset[str]
    functions: list[str]
    writes: list[tuple[str, str]] = field(default_factory=list)  # each with the field that it writes

    @property
    def modules(self) -> set[str]:
        """The modules of the functions that take it."""
        return {function.partition(":")[0] for function in self.functions}


# Carriers of a door: they are written as they are read, from a socket or an answer.
DOORS = frozenset({"RedisConnection", "RoutedHead", "Meter"})
CARRIED_FIELDS, CARRIED_FUNCTIONS, CARRIED_MODULES = 12, 20, 3


@cache
def carriers() -> list[Carrier]:
    """Every class that is changed where it is handed to, the one that is written at most places first."""
    found = {one.name: one for one in _changing()}
    names: dict[str, set[str]] = {name: set() for name in found}
    for module, tree in modules_with("def "):
        for function, named, kind in _parameters(tree):
            if kind in found:
                found[kind].functions.append(f"{module}:{function}")
                names[kind].add(named)
    for module, tree in modules_with(" = "):
        stored = [
            one for one in ast.walk(tree) if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store)
        ]
        for one in stored:
            holder = ast.unparse(one.value).rpartition(".")[2]
            for kind, carrier in found.items():
                if one.attr in carrier.fields and holder in names[kind] and module != carrier.module:
                    carrier.writes.append((f"{module}:{one.lineno}", one.attr))
    large = [
        one for one in found.values()
        if len(set(one.functions)) >= CARRIED_FUNCTIONS and len(one.modules) >= CARRIED_MODULES
    ]  # fmt: skip
    return sorted(large, key=lambda one: len(one.writes), reverse=True)


def _changing() -> Iterator[Carrier]:
    """Yield every class of the product with many fields, which are not frozen."""
    for module, tree in modules_with("class "):
        for one in ast.walk(tree):
            if isinstance(one, ast.ClassDef) and not _is_frozen(one) and one.name not in DOORS:
                fields = _fields_of(one)
                if len(fields) > CARRIED_FIELDS:
                    yield Carrier(one.name, module, fields, [])


def _parameters(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Yield each parameter of each function: the function, the parameter, and its type."""
    for one in ast.walk(tree):
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
            for each in (*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs):
                if each.annotation is not None:
                    yield one.name, each.arg, ast.unparse(each.annotation).removesuffix(" | None")


def _is_frozen(declared: ast.ClassDef) -> bool:
    """Return whether no field of a class changes, as of a value or a port."""
    said = [ast.unparse(one) for one in (*declared.decorator_list, *declared.bases, *declared.keywords)]
    return any("frozen=True" in one or one in {"NamedTuple", "Protocol", "TypedDict"} for one in said)


def _fields_of(declared: ast.ClassDef) -> frozenset[str]:
    """Return the fields of a class: those of a dataclass, and the slots of any other."""
    found = {
        one.target.id
        for one in declared.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }
    for one in declared.body:
        if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "__slots__":
            found |= {each.value for each in ast.walk(one.value) if isinstance(each, ast.Constant)}
    return frozenset(found)


def stays_of_admission() -> tuple[int, int]:
    """Return how often a usual request goes between `http/` and `calls/` to be admitted, and enters its module."""
    places = [name.removeprefix(f"{ROOT}/gateway/") for name in walk().places]
    admission, charge = "calls/admit.py", "calls/charge.py"
    places = places[: places.index(charge) - 1]
    pairs = [*pairwise(places)]
    doors = [{before.split("/")[0], after.split("/")[0]} == {"http", "calls"} for before, after in pairs]
    return sum(doors), pairs.count(("http/admission.py", admission))


def files_of_a_kind() -> list[str]:
    """Where a kind of use stands that a test makes up: its file, and those of the product that name it."""
    return ["tests/calls/test_new_kind.py", *files_naming("/v9/dial")]


def headings() -> dict[str, int]:
    """How many headings a module has: comments that stand alone between empty lines."""
    found = dict[str, int]()
    for name in code():
        if not name.endswith(".py"):
            continue
        blocks = re.findall(r"(?<=\n\n) *# [^\n]*\n(?: *#[^\n]*\n)*(?=\n)", texts()[name])
        if blocks:
            found[name] = len(blocks)
    return found


def main() -> None:
    """Print every number, and the files that one of them counts."""
    naming = files_naming(PLAN_FIELD)
    family = files_of_a_family()
    counted = {folder: lines(folder) for folder in PRODUCT}
    parts = ", ".join(f"{folder} {count:,}" for folder, count in counted.items())
    print(f"files a field of a plan stands in: {len(naming)}")  # its answer
    for name in naming:
        print(f"    {name}")
    print(f"places an API family stands in: {len(family)}")
    for name in family:
        print(f"    {name}")
    print(f"lines of product code: {sum(counted.values()):,} ({parts})")
    print(f"files at the root of gateway/: {len(root_files())}")
    print(f"packages of the base: {len(base_packages())}")
    print(f"layers: {len(layers())}")
    circled = circles()
    print(f"circles of imports: {len(circled)}, of {sum(map(len, circled))} modules")
    print(f"functions with a parameter exchange: {len(functions_with('exchange'))}")
    print(f"fields of an exchange: {len(Exchange.__slots__)}")
    walked = walk()
    print(f"stays of a request: {walked.stays}, in {len(walked.files)} files")
    largest = carriers()[0]
    print(
        f"largest carrier: {largest.name}, {len(largest.fields)} fields, written at {len(largest.writes)} places"
    )
    print(f"makers of an admission: {len(makers_of_admissions())}, stays of it: {stays_of_admission()[0]}")
    print(f"makers of the facts of a use: {len(makers_of_facts())}, of a price: {len(makers_of_prices())}")
    print(f"files that a new kind of use touches: {len(files_of_a_kind())}")
    most = max(headings().values())
    print(f"headings: {sum(headings().values())} in {len(headings())} modules, in one {most} at most")


if __name__ == "__main__":
    main()
