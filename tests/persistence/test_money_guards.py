"""Guards that compare stored money: each has the accounts closed first, or a reason why it need not."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.house import SourceFile, by_file

# Tables of amounts, and modules and functions that read them.
MONEY = frozenset(
    {
        "IN_ITS_CURRENCY", "budget_use", "call", "catch_up_allocations", "charge", "charges",
        "credit_addition", "credit_allocation", "credit_balances", "credit_debt", "feature_usage", "invoice",
        "invoice_line", "invoice_lines", "read_unbilled", "tenant_quota", "token_ledger",
    }
)  # fmt: skip
REFUSALS = frozenset({"Conflict", "Unprocessable"})
ROW = "compares the rows of one document or call, which are stored whole or not found"
DRAFT = "a draft has what is stored; what is stored later is on the next, and `finalize` closes the accounts"
WITHOUT_CLOSING = {
    "persistence/billing/amendments.py amended_call": ROW,
    "persistence/billing/amendments.py _settle": ROW,
    "persistence/billing/invoice_lines.py refuse_second_draft": ROW,
    "persistence/billing/invoices.py create": DRAFT,
    "persistence/billing/invoices.py _create_one_off": DRAFT,
    "persistence/billing/invoices.py void": ROW,
    "persistence/billing/payments.py give_up": ROW,
    "persistence/billing/payments.py reverse": ROW,
    "persistence/billing/payments.py refuse_while_paid": ROW,
    "persistence/billing/payments.py refuse_while_there": ROW,
    "persistence/billing/payments.py require_left": ROW,
    "persistence/dunning.py advance": ROW,
    "persistence/stripe/checkouts.py create": "refuses by prices and by orders, which PostgreSQL alone has",
    "persistence/stripe/collection.py ended": ROW,
}


def test_every_guard_that_compares_stored_money_has_accounts_closed() -> None:
    guards = {guard: closes == "closes" for guard, _, closes in (line.rpartition(": ") for line in _guards())}
    closing = {name for name, closes in guards.items() if closes}
    assert {f"persistence/resources/people.py {name}" for name in ("delete", "keep_currency")} <= closing
    assert guards.keys() - closing == WITHOUT_CLOSING.keys()


@by_file(".py", below=("persistence/",))
def _guards(file: SourceFile) -> Iterator[str]:
    """Yield each function that refuses a write and names money, and whether it has accounts closed."""
    for function in file.nodes if "/migrations/" not in file.name else ():
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            names = set(_names(function))
            if MONEY & names and any(_refuses(node) for node in ast.walk(function)):
                yield f"{file.name} {function.name}: {'closes' if 'require_closed' in names else 'does not'}"


def _names(function: ast.AST) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def _refuses(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id in REFUSALS
    )
