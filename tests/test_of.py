"""Which tests belong to a module."""

from __future__ import annotations

from pathlib import Path

from tests.of import find_tests, rank_of

MODULE = Path("gateway/core/billing/invoice.py")


def test_rank_of_puts_the_file_of_the_modules_name_first() -> None:
    name, other = "tests/core/billing/test_invoice.py", "tests/core/billing/test_payments.py"
    elsewhere = "tests/admin/test_payment.py"
    imports = "from gateway.core.billing import (\n    due,\n    invoice,\n)\n"
    assert [rank_of(MODULE, name, ""), rank_of(MODULE, other, imports)] == [0, 1]
    assert [rank_of(MODULE, elsewhere, imports), rank_of(MODULE, elsewhere, "an invoice")] == [2, None]


def test_find_tests_returns_the_whole_folder_of_a_module_that_no_test_names(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "core" / "billing"
    folder.mkdir(parents=True)
    for name in ("test_due.py", "test_invoice.py"):
        (folder / name).write_text("")
    due, invoice = "tests/core/billing/test_due.py", "tests/core/billing/test_invoice.py"
    assert find_tests([str(MODULE)], tmp_path) == [invoice]
    assert find_tests(["gateway/core/billing/tax.py"], tmp_path) == [due, invoice]
    assert find_tests(["docs/billing.md"], tmp_path) == []
