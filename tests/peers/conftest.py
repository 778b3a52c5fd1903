"""Peers are oracles only: these tests run in an environment of their own (make test-peers)."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # PyTorch warns about its own deprecations while it exports and loads; ours stay errors.
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"))
