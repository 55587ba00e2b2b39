"""What a machine can check of the rules; CONTRIBUTING.md says what they are for.

A rule may be broken where that makes better code. Then the place stands in a table here, with
its own bound and its reason, so that it cannot grow unnoticed.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from gateway.counters.redis.scripts import VERBS
from tests.house import SourceFile, by_file
from tests.numbers import imports
from tests.tree import ROOT, at_most, named, offenders, texts

PRODUCT = ("gateway/", "persistence/")
FUNCTION_LINES_MAX = 100  # as long as its thought; its complexity is bounded by ruff
PARTS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# Modules whose functions and classes fall into groups that do not name each other. The number only falls.
SEVERAL_GROUPS_MAX, GROUP_LINES_LEAST = (130, 13)
# Those of three groups or more, each with its reason.
_NOUNS = "types of one noun, which name each other in no code"
_READER = "one reader an endpoint, tied together by the family's table of routes"
THREE_GROUPS = {
    "gateway/calls/permit.py": "policies of one call, which `admit` asks in their order",
    "gateway/calls/rating.py": "steps of one price, which `prices` takes in their order",
    "gateway/core/alerts/thresholds.py": "rules of when to notify of a budget",
    "gateway/core/billing/events.py": _NOUNS,
    "gateway/core/families/anthropic/calls.py": _READER,
    "gateway/core/families/gemini/calls.py": _READER,
    "gateway/core/families/openai/calls.py": _READER,
    "gateway/core/integrity/recovery.py": _NOUNS,
    "gateway/core/model.py": "types of admission, compiled together",
    "gateway/core/wait.py": "ways to wait without an event loop",
    "gateway/counters/admission/stored.py": "a pair of encode and decode for each thing in Redis",
    "gateway/counters/redis/keys.py": "which server has a key, by slot, shard or digest",
    "gateway/counters/settlement_log/settlement_record.py": "readings of the same bytes",
    "gateway/features/stripe/handover.py": _NOUNS,
    "gateway/features/vendor_admin/report.py": "what reports of two vendors share",
    "gateway/http/admission.py": "ways into admission: a caller's, a certificate's, a tool's",
    "gateway/run/lifecycle.py": "ways in which loops and tasks end, each a function",
}
# Packages whose tests live in another package's folder.
TESTED_IN = {"gateway/cli": "tests/admin"}

# Tests wait for what should happen, by the one helper. Elsewhere it is the time itself that is wanted.
FIXED_WAITS: dict[str, str] = {
    "tests/waiting.py": "the helper: it looks again after a moment",
    "tests/bench/": "a measurement lasts for a while",
    "tests/faults/": "how long a fault lasts is drawn, or stated by its row",
    "tests/background/verifying/scene.py": "a keeper posts again and again, with pauses",
    "tests/core/test_wait.py": "a loop stands still",
    "tests/counters/redis/test_wire.py": "a loop stands still, a clock is ahead, several steps take long",
    "tests/deploy/rolling.py": "a list of upstreams is heard late, a load goes on before and behind",
    "tests/deploy/test_scrape.py": "calls are spread over several scrapes",
    "tests/http/stage.py": "an upstream takes its time",
    "tests/http/test_connections.py": "that nothing more comes, only time tells",
    "tests/http/test_hostility.py": "a client hangs up after a drawn while",
    "tests/journey/apis.py": "a client hangs up after a while",
    "tests/journey/parallel.py": "an upstream takes its time",
    "tests/model/system.py": "a process dies after a drawn while",
    "tests/run/test_readiness.py": "a look takes its time",
}

# What says how far a test searches: nothing else may set the number of its examples.
SEARCHED = ("examples", "histories")

EMPTY_NAMES = frozenset({"util", "utils", "helper", "helpers", "manager", "base", "common", "misc"})


# --- sizes ------------------------------------------------------------------------------


def test_modules_have_one_subject() -> None:
    at_most(SEVERAL_GROUPS_MAX, modules_of_several_subjects(), "split one of these by its subjects")


def test_module_of_three_subjects_states_its_reason() -> None:
    three = {name.partition(" ")[0] for name in several_groups() if name.endswith("+")}
    assert three == THREE_GROUPS.keys()


def modules_of_several_subjects() -> list[str]:
    return [name.partition(" ")[0] for name in several_groups()]


@by_file(".py", below=PRODUCT)
def several_groups(file: SourceFile) -> Iterator[str]:
    if (count := len(groups(file.tree))) > 1:
        yield f"{file.name} {count}{'+' if count > 2 else ''}"


def groups(tree: ast.Module) -> list[int]:
    """Return the lines of each group of a module's functions and classes, without the small groups.

    Two belong together if one names the other, or if a constant joins them: both name it, or its value names one.
    """
    parts = [node for node in tree.body if isinstance(node, PARTS)]
    nodes = [(part.name, part) for part in parts] + [
        (target.id, value) for value in tree.body for target in _constants(value)
    ]
    group = {name: {name} for name, _ in nodes}
    for name, node in nodes:
        for other in {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)} & group.keys():
            if group[other] is not group[name]:
                group[name] |= group[other]
                group.update(dict.fromkeys(group[name], group[name]))
    lines = Counter[int]()
    for part in parts:
        lines[id(group[part.name])] += (part.end_lineno or part.lineno) - part.lineno + 1
    return [count for count in lines.values() if count >= GROUP_LINES_LEAST]


def _constants(node: ast.stmt) -> list[ast.Name]:
    """Return the names that a statement of a module gives to a value."""
    if not isinstance(node, ast.Assign | ast.AnnAssign):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target for target in targets if isinstance(target, ast.Name)]


def test_functions_stay_small() -> None:
    offenders(long_functions())


@by_file(".py")
def long_functions(file: SourceFile) -> Iterator[str]:
    for node in file.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines >= FUNCTION_LINES_MAX:
                yield f"{file.name}:{node.lineno} {node.name}: {lines} lines"


# --- shapes -----------------------------------------------------------------------------

# A result of more values is a record, and a comprehension of more conditions names one.
VALUES_MAX, CONDITIONS_MAX = 3, 2
# Such results and comprehensions, choices within choices, loops over a choice. The number only falls.
UNNAMED_SHAPES_MAX = 58


def test_results_conditions_and_choices_have_names() -> None:
    at_most(UNNAMED_SHAPES_MAX, unnamed_shapes(), "name the values, one of the conditions, or a choice")


@by_file(".py", below=PRODUCT)
def unnamed_shapes(file: SourceFile) -> Iterator[str]:
    for node in file.nodes:
        match node:
            case ast.FunctionDef(returns=ast.expr()) | ast.AsyncFunctionDef(returns=ast.expr()):
                if any(values_of(part) > VALUES_MAX for part in ast.walk(node.returns)):
                    yield f"{file.name}:{node.lineno} {node.name}: a result"
            case ast.comprehension() if sum(map(conditions_of, node.ifs)) > CONDITIONS_MAX:
                yield f"{file.name}:{node.target.lineno}: conditions"
            case ast.IfExp() if any(isinstance(part, ast.IfExp) for part in (node.body, node.orelse)):
                yield f"{file.name}:{node.lineno}: a choice within a choice"
            case ast.For(iter=ast.IfExp()) | ast.AsyncFor(iter=ast.IfExp()):
                yield f"{file.name}:{node.lineno}: a loop over a choice"


def values_of(part: ast.AST) -> int:
    match part:
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=values)):
            return len(values)
    return 0


def conditions_of(condition: ast.expr) -> int:
    return len(condition.values) if isinstance(condition, ast.BoolOp) else 1


# --- words ------------------------------------------------------------------------------


def test_modules_open_with_their_law() -> None:
    offenders(modules_without_docstring())


@by_file(".py")
def modules_without_docstring(file: SourceFile) -> Iterator[str]:
    if not ast.get_docstring(file.tree):
        yield file.name


def test_names_say_what_things_are() -> None:
    offenders(empty_names())


@by_file(".py")
def empty_names(file: SourceFile) -> Iterator[str]:
    if EMPTY_NAMES & set(Path(file.name).stem.split("_")):
        yield file.name
    for node in file.nodes:
        if isinstance(node, ast.ClassDef):
            words = {word.lower() for word in re.findall(r"[A-Z][a-z]+", node.name)}
            if EMPTY_NAMES & words:
                yield f"{file.name}:{node.lineno} {node.name}"


def test_nothing_is_left_for_later() -> None:
    offenders(marks_for_later())


@by_file("")
def marks_for_later(file: SourceFile) -> Iterator[str]:
    marks = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b|^(?:<{7}|>{7}) ")
    for number, line in enumerate(file.text.splitlines(), 1):
        if marks.search(line):
            yield f"{file.name}:{number}"


# Somebody's directories, and where packages were fetched from.
MACHINES = re.compile(r"/(?:home|Users|root|work|workspace)/[\w.-]|/tmp/[\w.-]")
HOSTS = re.compile(r"pypi\." + r"org|python" + r"hosted|artifact" + r"ory|index-" + r"url", re.IGNORECASE)


def test_the_tree_knows_no_machine() -> None:
    locks = (SourceFile(path.name, path.read_text()) for path in ROOT.glob("*.lock"))
    offenders([*names_of_machines(), *(line for lock in locks for line in _names_of_machines(lock))])


def _names_of_machines(file: SourceFile) -> Iterator[str]:
    for number, line in enumerate(file.text.splitlines(), 1):
        if MACHINES.search(line) or (HOSTS.search(line) and file.name != "Makefile"):
            yield f"{file.name}:{number}"


names_of_machines = by_file("")(_names_of_machines)


def test_silenced_rules_say_why() -> None:
    offenders(rules_silenced_without_reason())


@by_file(".py")
def rules_silenced_without_reason(file: SourceFile) -> Iterator[str]:
    """Each `noqa` and `ignore` names its rule; a file says why the first time it silences one."""
    silenced = re.compile(r"#\s*(noqa|type: ignore)(?::\s*|\[)?([A-Za-z0-9, -]*)\]?\s*(#\s*\S.*)?$")
    explained: set[str] = set()
    for number, line in enumerate(file.text.splitlines(), 1):
        match = silenced.search(line)
        if match is None:
            continue
        rules = {rule.strip() for rule in match[2].split(",") if rule.strip()}
        if match[3]:
            explained |= rules
        if not rules or not rules <= explained:
            yield f"{file.name}:{number}"


# --- tests ------------------------------------------------------------------------------


def test_tests_wait_for_no_fixed_time() -> None:
    """Nor look again by a sleep of their own: a sleep of no time gives others their turn."""
    places = {line: next((place for place in FIXED_WAITS if line.startswith(place)), "") for line in sleeps()}
    offenders(
        f"{line}: wait for what should happen, as tests/waiting.py does"
        for line, place in places.items()
        if line.startswith("tests/") and not place
    )
    offenders(f"{place} needs no exception" for place in FIXED_WAITS.keys() - set(places.values()))


@by_file(".py")
def sleeps(file: SourceFile) -> Iterator[str]:
    for called, call in calls(file):
        if called in {"asyncio.sleep", "time.sleep", "sleep"} and ast.unparse(call.args[0]) != "0":
            yield f"{file.name}:{call.lineno} sleeps"


def test_how_far_a_test_searches_is_decided_in_one_place() -> None:
    offenders(numbers_of_examples())


@by_file(".py")
def numbers_of_examples(file: SourceFile) -> Iterator[str]:
    for _, call in calls(file):
        for word in call.keywords:
            if word.arg == "max_examples" and not _is_searched(word.value):
                yield f"{file.name}:{call.lineno} sets how many examples are tried: tests/search.py says that"


def _is_searched(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and _dotted(value.func) in SEARCHED


def calls(file: SourceFile) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call in a file, with the dotted name of what is called."""
    return ((_dotted(node.func), node) for node in file.nodes if isinstance(node, ast.Call))


def _dotted(called: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(called, ast.Attribute):
        parts.append(called.attr)
        called = called.value
    return ".".join([called.id if isinstance(called, ast.Name) else "?", *reversed(parts)])


def test_tests_set_no_constant() -> None:
    """What a test has otherwise is an argument: so anybody may have it, and a compiler has its constants."""
    offenders(patched_constants())


@by_file(".py")
def patched_constants(file: SourceFile) -> Iterator[str]:
    for called, call in calls(file):
        if called.endswith("patch.setattr"):
            attribute = next((part.value for part in call.args if isinstance(part, ast.Constant)), "")
            if str(attribute).rpartition(".")[2].isupper():
                yield f"{file.name}:{call.lineno} sets {attribute}: make it an argument"


# --- the scripts ------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_scripts_open_with_their_specification(verb: str) -> None:
    script = texts()[f"lua/{verb}.lua"]
    head, _, body = script.partition("\nif #KEYS ")
    assert head.startswith(f"-- {verb}: ")
    for part in ("-- KEYS[1]", "-- ARGV[1]", "-- Returns", "-- Example"):
        assert part in head, f"lua/{verb}.lua says nothing of {part}"
    assert all(line.startswith("--") for line in head.splitlines()), "code stands above the arity assertion"
    assert re.match(rf".*#ARGV .*then\s+return redis\.error_reply\('ERR {verb} takes ", body)


def test_script_libraries_say_what_they_are() -> None:
    for name in named(".lua"):
        if name.startswith("lua/lib/"):
            assert texts()[name].startswith(f"-- {Path(name).stem}: "), name


@pytest.mark.parametrize("verb", VERBS)
def test_one_verb_has_its_places(verb: str) -> None:
    """A verb is a script, a heading, a row of the catalogue, and a file of tests."""
    assert (ROOT / f"tests/lua/test_{verb}.py").exists()
    assert re.search(rf"^#+ `?{verb}`?\b", texts()["docs/internals/scripts.md"], re.MULTILINE)
    assert f"`{verb}`" in (ROOT / "lua/README.md").read_text()


# --- shape ------------------------------------------------------------------------------


def test_tests_mirror_the_source() -> None:
    packages = {Path(name).parent.as_posix() for name in named("/__init__.py")}
    doors = {name for name in packages if re.fullmatch(r"gateway/\w+", name)} | {"persistence", "lua"}
    tested = {Path(name).parent.as_posix() for name in texts() if re.search(r"/test_\w+\.py$", name)}

    def found() -> Iterator[str]:
        for package in doors:
            wanted = TESTED_IN.get(package, f"tests/{package.rpartition('/')[2]}")
            if not any(folder == wanted or folder.startswith(f"{wanted}/") for folder in tested):
                yield f"{package} has no tests in {wanted}"

    offenders(found())


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = imports()
    order = TopologicalSorter(
        {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    )
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_versions_of_the_schema_follow_each_other() -> None:
    versions = sorted(name for name in texts() if re.search(r"/versions/v\d{4}_\w+\.py$", name))
    numbers = [name.rpartition("/v")[2][:4] for name in versions]
    assert numbers == [f"{int(numbers[0]) + at:04}" for at in range(len(numbers))]
    for name, number, before in zip(versions[1:], numbers[1:], numbers, strict=False):
        assert f'\nrevision = "{number}"\ndown_revision = "{before}"\n' in texts()[name], name


def test_patterns_of_types_end_at_the_end_of_the_text() -> None:
    """`$` stands before a last line break too."""
    offenders(open_patterns())


@by_file(".py")
def open_patterns(file: SourceFile) -> Iterator[str]:
    for node in file.nodes if not file.name.startswith("tests/") else ():
        if isinstance(node, ast.Call) and _is_meta(node.func):
            for pattern in (word.value for word in node.keywords if word.arg == "pattern"):
                text = ast.unparse(pattern)
                if "$" in text.replace("[^$]", ""):
                    yield f"{file.name}:{node.lineno}: {text}"


def _is_meta(function: ast.expr) -> bool:
    return ast.unparse(function) in {"msgspec.Meta", "Meta"}


# pydantic and typer read the signature of these functions. Only some versions of Python know a builtin's.
INSPECTING = (
    "AfterValidator", "BeforeValidator", "Discriminator", "PlainSerializer", "PlainValidator", "WrapSerializer",
    "WrapValidator",
)  # fmt: skip
INSPECTED = ("autocompletion", "callback", "default_factory", "func")


def test_functions_of_which_a_library_reads_the_signature_are_ours() -> None:
    offenders(foreign_functions())


@pytest.mark.parametrize("given", ["int", "date.isoformat", "'{:f}'.format", "partial(round, 1)", "show"])
def test_a_foreign_function_is_found_wherever_a_library_reads_its_signature(given: str) -> None:
    text = f"def show(value): ...\nPlainSerializer({given}, when_used='json')\nField(default_factory={given})"
    assert len(list(_foreign_functions(SourceFile("gateway/a.py", text)))) == (0 if given == "show" else 2)


def _foreign_functions(file: SourceFile) -> Iterator[str]:
    """Yield the functions that are no lambda, no function of the tree and no `partial` of one."""
    foreign = set(dir(builtins)) | {
        alias.asname or alias.name
        for node in file.nodes
        if isinstance(node, ast.ImportFrom) and not f"{node.module}.".startswith(("gateway.", "persistence."))
        for alias in node.names
    }
    for called, call in calls(file):
        given = [word.value for word in call.keywords if word.arg in INSPECTED and "field" not in called]
        for function in [*given, *(call.args[:1] if called in INSPECTING else ())]:
            match function:
                case ast.Call(func=ast.Name(id="partial"), args=[inner, *_]):
                    pass
                case inner:
                    pass
            if isinstance(inner, ast.Attribute) or (isinstance(inner, ast.Name) and inner.id in foreign):
                yield f"{file.name}:{function.lineno}: write a lambda around {ast.unparse(inner)}"


foreign_functions = by_file(".py", below=PRODUCT)(_foreign_functions)
