"""The README and the docs are programs too: their Python runs, their links lead somewhere."""

from __future__ import annotations

import doctest
import os
import re
from pathlib import Path

import pytest

from benchmarks import report

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_the_page(page: Path, minilm: Path, tmp_path: Path) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        result = doctest.testfile(str(page), module_relative=False, globs={"minilm": minilm})
    finally:
        os.chdir(before)
    assert result.failed == 0
    assert result.attempted or ">>>" not in page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_figures_of_the_readme_are_those_of_the_newest_results() -> None:
    newest = report.newest(ROOT / "benchmarks" / "results", {"sdpa", "additive", "minilm"})
    table = report.summary(report.read(newest))
    assert table in (ROOT / "README.md").read_text("utf-8")


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)`", page.read_text("utf-8")):
            assert target in targets, f"{page.name}: make {target}"
