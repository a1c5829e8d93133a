"""tests/bench/webgpu runs, on a tiny model in software: what it measures on a graphics chip must not rot meanwhile."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench" / "webgpu"
sys.path.append(str(BENCH))

import gpu_bench  # noqa: E402
import gpu_report  # noqa: E402

pytestmark = pytest.mark.page


@pytest.mark.usefixtures("dist")
def test_the_bench_measures_and_reports(tmp_path: Path) -> None:
    if not gpu_bench.PEERS.is_dir():
        pytest.skip("The peers are not there: npm ci --ignore-scripts in tests/bench/peers")
    checkpoint, export = gpu_bench.tiny(tmp_path, 64)
    result = gpu_bench.measure(
        argparse.Namespace(
            checkpoint=checkpoint,
            export=export,
            contexts=[12, 40],
            tokens=4,
            swiftshader=True,
            cache=tmp_path / "cache",
        )
    )
    ours, theirs = (result["figures"][name]["at"] for name in ("handbill", "transformers.js q4"))
    for context in ("12", "40"):
        assert ours[context]["mapped"] == 64 * 12
        assert ours[context]["buffers"] == 0
        assert ours[context]["dispatches"] < theirs[context]["dispatches"]
        assert len(ours[context]["output"]) == len(theirs[context]["output"]) == 4
    assert {visit["device"] for visit in result["visits"]} == gpu_report.DEVICES.keys()
    assert result["visits"] and all(visit["page"] and visit["runtime"] and visit["model"] for visit in result["visits"])
    text = gpu_report.markdown(result)
    assert "SwiftShader" in text or "swiftshader" in text
    assert f"| handbill | 40 | {ours['40']['dispatches']:,} |" in text


def test_the_committed_report_is_of_the_committed_figures() -> None:
    assert (gpu_report.RESULTS / "webgpu.md").read_text("utf-8") == gpu_report.markdown(gpu_report.load())
