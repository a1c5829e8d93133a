"""The README quotes the committed figures of tests/bench/results and no others."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests" / "bench" / "cpu"))

import report  # noqa: E402


def test_the_readme_quotes_the_committed_figures() -> None:
    figures = {name: report.load(report.RESULTS, name) for name in ("cpu", "tab", "export")}
    wanted = report.readme(figures["cpu"], figures["tab"], figures["export"])
    assert wanted in (ROOT / "README.md").read_text("utf-8")


def test_the_report_is_of_the_committed_figures() -> None:
    wanted = report.markdown(report.load(report.RESULTS, "cpu"), report.load(report.RESULTS, "fidelity"))
    assert (report.RESULTS / "cpu.md").read_text("utf-8") == wanted
