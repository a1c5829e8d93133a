"""The README quotes the committed figures of tests/bench/results and no others."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests" / "bench" / "cpu"), str(ROOT / "tests" / "bench")]

import model_table  # noqa: E402
import quantization_report  # noqa: E402
import report  # noqa: E402


def test_the_readme_quotes_the_committed_figures() -> None:
    wanted = report.readme(*(report.load(report.RESULTS, name) for name in report.QUOTED))
    assert wanted in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", sorted(path.stem for path in report.RESULTS.glob("cpu*.json")))
def test_the_report_is_of_the_committed_figures(name: str) -> None:
    assert (report.RESULTS / f"{name}.md").read_text("utf-8") == report.reported(name)


def test_the_table_of_models_is_that_of_the_recipes_and_the_committed_figures() -> None:
    assert model_table.PAGE.read_text("utf-8") == model_table.markdown()
    assert model_table.MARKS[0] + model_table.readme() + model_table.MARKS[1] in model_table.README.read_text("utf-8")


def test_the_methods_are_those_of_the_committed_figures() -> None:
    figures = json.loads(quantization_report.FIGURES.read_text("utf-8"))
    assert quantization_report.PAGE.read_text("utf-8") == quantization_report.markdown(figures)
