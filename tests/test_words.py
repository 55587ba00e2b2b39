"""The words of the project: phrases that a reader stumbles over.

Subject, verb, object. Each row says which phrase is not written, and what to write in its place. It holds for
documents, comments, docstrings and messages of the product.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from tests.house import SourceFile, by_file
from tests.tree import at_most, named, offenders, texts

BE = "is|was|are|were|has|have|had|comes|came|stands|stood|cannot|may|can"
DO = f"{BE}|does|do|did|could|needs|makes|made|keeps|stays|must|would|will|happens|differs|waits"
PHRASES = {
    r"\b[Ww]ho(?:m|se|so)?ever\b": "the caller, the next worker, or a sentence without him",
    rf"^What (?:{DO})\b": "a noun: the outcome, the rest, waiting entries",
    rf"\b(?:and|but|than|so|then|that|where|if|because|since|or) what (?:{BE})\b": "a noun: and the rest",
    r"\bsuch an? one\b": "the noun again",
    r"\b(?:of|behind|beside|over|under|before|after) which\b": "two sentences; with, whose, where",
    r"\bthat which\b": "the noun",
    r"\bof what(?:ever)?\b": "a noun: of the free amount, of its use",
    r"\bof whom\b": "with, whose",
    r"\b(?:Only then|Only so|Not until then|Nor|[Nn]either|Never|Nowhere|So|nor)"
    r" (?:does|do|is|are|did|was|were|has|have|had|can|may|must) (?!not\b)": "subject first",
    r"\b[Tt]old apart\b": "grouped by, counted each by itself, distinguished",
    r"\b(?:[Bb]egins?|[Bb]egan) again\b": "resets, starts over",
    r"(?<!:)\banew\b": "again",
}
PATTERN = re.compile("|".join(PHRASES))
PRODUCT = ("gateway/", "persistence/", "lua/", "deploy/")
FUNCTIONS = "persistence/schema/functions.sql"  # databases have this text: it changes with a migration alone
PLACES = (*PRODUCT, "docs/", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


PARTICIPLES = ("told", "said", "asked", "kept", "taken", "placed", "left", "beyond")
NAME = re.compile(r"^class (\w+)", re.MULTILINE)


def test_no_class_or_module_is_a_participle() -> None:
    """A noun says what a thing is; a verb's past says only that somebody did something to it."""

    def found() -> Iterator[str]:
        for name in named(".py"):
            words = Path(name).stem.split("_")
            if set(words) & set(PARTICIPLES):
                yield f"{name}: a module of this name"
            for declared in NAME.findall(texts()[name]):
                if declared.endswith(tuple(word.capitalize() for word in PARTICIPLES)):
                    yield f"{name}: class {declared}"

    offenders(found())


# First words of docstrings of functions: what a function does. A property may begin with a noun.
VERBS = frozenset(
    """
    Abandon Accept Acknowledge Acquire Add Admit Adopt Advance Allocate Allow Amend Answer Append Apply
    Archive Assert Assign Authenticate Await Beat Begin Block Book Bound Break Buffer Build Call Cancel
    Capture Carry Change Charge Check Choose Claim Classify Clear Close Collect Commit Compare Compile
    Complete Compute Configure Connect Continue Convert Copy Count Create Credit Cut Deal Decide Decode
    Decrypt Defer Define Delete Deliver Deny Describe Detect Discard Draft Drain Drop Encode Encrypt End
    Enter Escape Estimate Evict Execute Expire Export Extend Extract Fail Feed Fetch Filter Find Finish
    Fit Flush Fold Follow Forget Fork Format Forward Frame Generate Get Grant Group Hand Handle Hold
    Honour Identify Ignore Import Increment Initialize Insert Install Invoice Issue Iterate Join Judge
    Learn Lend Limit List Listen Load Lock Log Look Lower Make Map Mark Match Measure Merge Migrate Move
    Multiply Name Narrow Note Notify Number Observe Open Order Pack Park Parse Part Pass Pause Pay Place
    Plan Poll Post Prepare Print Probe Process Publish Push Put Quarantine Query Queue Raise Rate Read
    Reclaim Record Redeem Redefine Reduce Refresh Refund Refuse Register Reject Relay Release Reload
    Remember Remove Rename Render Renew Replace Replay Report Request Require Reserve Reset Resolve
    Restore Restrict Resume Retry Return Reverse Revoke Rewrite Rotate Round Run Scan Schedule See
    Select Send Serve Set Settle Shake Share Shield Show Sign Signal Simulate Skip Sort Split Spread
    Start Stop Store Stream Submit Subscribe Subtract Sum Summarize Suspend Switch Sync Teach Test Trace
    Track Transform Translate Trust Try Turn Understand Undo Unlock Unpack Update Upload Use Validate
    Verify Visit Void Vouch Wait Wake Warn Watch Work Wrap Write Yield
    """.split()  # noqa: SIM905  # two hundred literals are ten times as many lines
)
# Paths of the Admin API that a function answers, and errors that it raises, in backticks.
METHOD = re.compile(r"`(?:GET|POST|PUT|PATCH|DELETE) ")
# Functions whose docstring begins otherwise: this number may only fall.
OTHERWISE_MAX = 12


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    at_most(OTHERWISE_MAX, docstrings_without_verb(), "begin with a verb")


@by_file(".py", below=("gateway/", "persistence/"))
def docstrings_without_verb(file: SourceFile) -> Iterator[str]:
    for node in file.nodes:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        doc = ast.get_docstring(node)
        is_property = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
        if doc is None or is_property or METHOD.match(doc):
            continue
        if doc.split()[0].strip(".,:;") not in VERBS:
            yield f"{file.name}:{node.lineno}: {doc.splitlines()[0][:80]}"


# Names that say nothing of what they hold.
BARE = {"one", "found", "said", "told", "each"}
# Variables and parameters of these names: this number may only fall.
BARE_MAX = 1_072


def test_variables_are_nouns() -> None:
    at_most(BARE_MAX, bare_names(), "name each for its value")


@by_file(".py", below=("gateway/", "persistence/"))
def bare_names(file: SourceFile) -> Iterator[str]:
    for node in file.nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in BARE:
            yield f"{file.name}:{node.lineno}: {node.id}"
        elif isinstance(node, ast.arg) and node.arg in BARE:
            yield f"{file.name}:{node.lineno}: {node.arg}"


# No function's whole name is such a word, or a participle.
ALONE = {*BARE, *PARTICIPLES, "known", "shown", "seen", "made", "gone"}


def test_functions_are_verbs_with_nouns() -> None:
    offenders(functions_of_one_word())


@by_file(".py", below=("gateway/", "persistence/"))
def functions_of_one_word(file: SourceFile) -> Iterator[str]:
    for node in file.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.strip("_") in ALONE:
            is_property = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not is_property:
                yield f"{file.name}:{node.lineno}: {node.name}"


# Functions whose name is one participle, or begins with a preposition: this number may only fall.
VAGUE = re.compile(
    r"_*(?:(?!feed|need|embed)[a-z]+ed|(?:of|by|in|at|to|with|from|for|on|as|no|not)(?:_\w+)?)"
)
VAGUE_MAX = 693


def test_functions_are_named_by_verbs() -> None:
    at_most(VAGUE_MAX, vague_functions(), "name each by a verb and its noun")


@by_file(".py", below=("gateway/", "persistence/"))
def vague_functions(file: SourceFile) -> Iterator[str]:
    for node in file.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and VAGUE.fullmatch(node.name):
            yield f"{file.name}:{node.lineno}: {node.name}"


# Words in the name of a test that stand for its subject, and do not say it.
PRONOUNS = frozenset(
    {
        "what", "who", "whose", "whom", "it", "one", "ones", "those", "these", "they", "them", "there", "here", "such",
        "nobody", "nothing", "somebody", "something", "everybody", "everything", "anybody", "anything", "told", "said",
        "asked",
    }
)  # fmt: skip
# How many names of tests have one, by folder: these numbers may only fall.
PRONOUNS_MAX = {
    ".": 28, "background": 233, "bench": 5, "calls": 10, "client": 4, "contract": 14, "core": 508,
    "counters": 315, "deploy": 59, "faults": 20, "features": 5, "http": 394, "issuers": 30, "journey": 94, "local": 39,
    "lua": 216, "model": 1, "ops": 51, "outbound": 9, "persistence": 203, "run": 89, "settings": 37,
    "telemetry": 16, "tls": 14, "world": 3,
}  # fmt: skip


def test_names_of_tests_have_a_subject() -> None:
    places = names_of_tests_with_pronouns()
    for folder in {folder_of(place) for place in places}:
        of_folder = [place for place in places if folder_of(place) == folder]
        at_most(
            PRONOUNS_MAX.get(folder, 0),
            of_folder,
            "name what is tested, without " + ", ".join(sorted(PRONOUNS)),
        )


def folder_of(place: str) -> str:
    """Return the folder below `tests/` of a file, `.` for none."""
    folder, _, file = place.removeprefix("tests/").partition("/")
    return folder if file else "."


@by_file(".py", below=("tests/",))
def names_of_tests_with_pronouns(file: SourceFile) -> Iterator[str]:
    for node in file.nodes:
        is_test = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        if is_test and PRONOUNS & set(node.name.split("_")):
            yield f"{file.name}: {node.name}"


def test_phrases_are_plain() -> None:
    offenders(unplain_phrases())


@by_file(".md", ".py", ".lua", ".sql", ".html", ".yaml", ".yml", ".sh", below=PLACES)
def unplain_phrases(file: SourceFile) -> Iterator[str]:
    for sentence in filter(PATTERN.search, sentences(file) if file.name != FUNCTIONS else ()):
        instead = next(instead for phrase, instead in PHRASES.items() if re.search(phrase, sentence))
        yield f"{file.name}: {sentence[:90]} … (write {instead})"


def test_a_phrase_is_found_wherever_it_stands() -> None:
    program = (
        '"""Whoever reads this."""\n# A call\n# of which one is left.\n'
        'raise Refused("no more " f"of what {there}")\n'
    )
    page = (
        "Two of\nwhich are left.\n\n    of which\n\n| What is there |\n|---|\n| x | What is left |\n\n"
        "What is it?\n"
    )
    spoken = [*python_prose(program), *page_prose(page)]
    hits = [sentence for text in spoken for sentence in split(text) if PATTERN.search(sentence)]
    assert hits == [
        "A call of which one is left.", "Whoever reads this.", "no more of what {there}",
        "Two of which are left.", "What is left",
    ]  # fmt: skip


def sentences(file: SourceFile) -> Iterator[str]:
    name, text = file.name, file.text
    if name.endswith(".py"):
        spoken = python_prose(text)
    elif name.endswith(".md"):
        spoken = page_prose(text)
    elif name.endswith(".html"):
        spoken = iter(re.split(r"[<>\"]", text))
    else:
        mark = r"--+" if name.endswith((".lua", ".sql")) else "#+"
        spoken = comment_prose(text, mark)
    for paragraph in spoken:
        yield from split(paragraph)


def split(paragraph: str) -> Iterator[str]:
    text = re.sub(r"`[^`]*`", "x", " ".join(paragraph.split()))
    for sentence in re.split(
        r"(?<=[.!?;])(?:\*\*|[)\"])?\s+|(?<=:)\s+(?=[A-Z])|\s\|\s|^(?:[-*] |\d+\. )", text
    ):
        if sentence and not sentence.endswith("?"):
            yield sentence.strip("|* \"'")


def page_prose(page: str) -> Iterator[str]:
    """Paragraphs, items and cells, without code and the headings of tables."""
    page = re.sub(r"```.*?```|(?<=\n\n)(?: {4}[^\n]*\n)+", "", page, flags=re.DOTALL)
    page = re.sub(r"^\|.*\|\n(?=\|[-:| ]+\|$)|^#.*$", "", page, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|(?<=\|)\n", page):
        yield re.sub(r"^\s*(?:[-*]|\d+\.) ", "", paragraph)


def comment_prose(text: str, mark: str) -> Iterator[str]:
    comments = ((match := re.match(rf"\s*{mark} ?(.*)", line)) and match[1] for line in text.splitlines())
    for is_prose, lines in groupby(comments, bool):
        if is_prose:
            yield " ".join(str(line) for line in lines)


def python_prose(text: str) -> Iterator[str]:
    """Comments, docstrings, and texts with a blank, each as one."""
    yield from comment_prose(text, "#+")
    run: list[str] = []
    for token in whole_tokens(text):
        if token.type == tokenize.STRING:
            run.append(token.string.lstrip("rbfRBF").strip("\"'"))
        elif token.type == tokenize.COMMENT and token.line[: token.start[1]].strip():
            yield token.string.lstrip("# ")
        elif token.type not in (tokenize.NL, tokenize.COMMENT) and run:
            message, run = "".join(run), []
            if " " in message:
                yield from re.split(r"\n\s*\n|\n(?=\s*- )", message)


def whole_tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    """Yield the tokens of a program. An f-string is one, as before Python 3.12, which splits it into several."""
    lines, starts = text.splitlines(keepends=True), list[tokenize.TokenInfo]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind.endswith("STRING_START"):
            starts.append(token)
        elif kind.endswith("STRING_END"):
            start = starts.pop().start
            if not starts:
                rows = [*lines[start[0] - 1 : token.end[0] - 1], lines[token.end[0] - 1][: token.end[1]]]
                string = "".join(rows)[start[1] :]
                yield tokenize.TokenInfo(tokenize.STRING, string, start, token.end, token.line)
        elif not starts:
            yield token
