"""Loading code looks for no garbage, and leaves the collector as it was."""

from __future__ import annotations

import gc

import pytest

from gateway.run.loading import loading_code


def test_no_garbage_is_looked_for_meanwhile() -> None:
    try:
        with loading_code():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


def test_a_failure_leaves_the_collector_on() -> None:
    try:
        with pytest.raises(ImportError), loading_code():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()
