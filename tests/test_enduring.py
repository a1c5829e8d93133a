"""sessions/enduring.js: a device that is lost in mid-answer costs a longer step, never the conversation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import node_module
from node_module import NodeModule

ASKED = [[[1, 2, 3]], [[4]], [[5]]]


@pytest.fixture(scope="module")
def node() -> Iterator[NodeModule]:
    with node_module.loaded(Path(__file__).parent / "webgpu" / "enduring.mjs") as module:
        yield module


def play(node: NodeModule, starts: list[dict[str, Any]], moves: list[Any], choices: str = "gpu cpu") -> dict[str, Any]:
    result: dict[str, Any] = node.ask("play", choices.split(), starts, moves)
    return result


def test_without_faults_it_hands_everything_through(node: NodeModule) -> None:
    got = play(node, [{}], [*ASKED, 2, [[6, 7], 2]])
    assert got["log"] == ["gpu 1 2 3", "gpu 4", "gpu 5", "gpu 6 7"]
    assert (got["length"], got["moved"], got["faults"]) == (4, [], [])
    assert got["last"] == {"ids": [4], "positions": 2}


def test_a_lost_device_is_opened_anew_and_reads_the_conversation_again(node: NodeModule) -> None:
    got = play(node, [{"fails": {2: "device"}}, {}], ASKED)
    assert got["log"] == ["gpu 1 2 3", "gpu 4", "gpu 1 2 3 4", "gpu 5"]
    assert (got["moved"], got["faults"], got["runtime"]) == (["device: gpu"], [], "gpu")
    assert got["closed"] == [True, False]
    assert got["last"]["ids"] == [5]


def test_a_device_lost_twice_in_one_step_gives_way_to_the_processor(node: NodeModule) -> None:
    got = play(node, [{"fails": {2: "device"}}, {"fails": {1: "device"}}, {}], ASKED)
    assert got["log"][-2:] == ["cpu 1 2 3 4", "cpu 5"]
    assert (got["moved"], got["faults"], got["runtime"]) == (["device: gpu", "device: cpu"], [], "cpu")


def test_a_device_lost_again_much_later_is_opened_anew_again(node: NodeModule) -> None:
    got = play(node, [{"fails": {1: "device"}}, {"fails": {2: "device"}}, {}], ASKED)
    assert got["runtime"] == "gpu"
    assert got["inner"] == [1, 2, 3, 4, 5]


def test_the_next_runtime_takes_the_adapter_along(node: NodeModule) -> None:
    got = play(node, [{"fails": {3: "device"}}, {}], [[[1]], "legal", *ASKED])
    assert got["log"] == [
        *("gpu 1", "gpu adapter legal", "gpu 1 2 3", "gpu 4"),
        *("gpu adapter legal", "gpu 1 2 3 4", "gpu 5"),
    ]
    assert (got["length"], got["faults"]) == (5, [])


def test_an_adapter_that_cannot_be_had_leaves_the_conversation(node: NodeModule) -> None:
    got = play(node, [{"fails": {2: "device"}}, {}], [*ASKED[:2], "missing", *ASKED[2:]])
    assert (got["faults"], got["length"]) == (["download"], 5)
    assert got["log"][-2:] == ["gpu 1 2 3 4", "gpu 5"]


def test_a_device_that_is_gone_gives_way_to_the_processor(node: NodeModule) -> None:
    got = play(node, [{"fails": {2: "device"}}, {"refuses": "device"}, {}], ASKED)
    assert (got["runtime"], got["faults"], got["length"]) == ("cpu", [], 5)
    assert got["moved"] == ["device: cpu"]


def test_memory_that_ran_out_is_not_tried_again(node: NodeModule) -> None:
    got = play(node, [{"fails": {2: "memory"}}, {}], ASKED)
    assert (got["runtime"], got["moved"]) == ("cpu", ["memory: cpu"])
    assert got["inner"] == [1, 2, 3, 4, 5]


def test_garbage_in_mid_answer_is_remembered_and_not_tried_again(node: NodeModule) -> None:
    got = play(node, [{"fails": {2: "wrong"}}, {}], ASKED)
    assert (got["runtime"], got["moved"], got["wrong"], got["faults"]) == ("cpu", ["wrong: cpu"], ["gpu"], [])
    assert got["inner"] == [1, 2, 3, 4, 5]


def test_garbage_from_a_device_that_was_opened_anew_is_remembered_too(node: NodeModule) -> None:
    got = play(node, [{"fails": {2: "device"}}, {"fails": {0: "wrong"}}, {}], ASKED)
    assert (got["runtime"], got["moved"], got["wrong"]) == ("cpu", ["device: cpu"], ["gpu"])


def test_the_only_device_is_opened_anew_by_the_step_after_garbage(node: NodeModule) -> None:
    """What failed there once is of no more use, and nothing else may be asked: a chip that was forced."""
    got = play(node, [{"fails": {2: "wrong"}}, {}], [*ASKED, [[6]]], "gpu")
    assert (got["faults"], got["wrong"], got["closed"]) == (["device"], ["gpu"], [True, False])
    assert got["inner"] == [1, 2, 3, 4, 6]


def test_what_was_rewound_is_not_read_again(node: NodeModule) -> None:
    got = play(node, [{"fails": {3: "memory"}}, {}], [*ASKED, 1, [[9]]])
    assert got["inner"] == [1, 9]


def test_what_came_out_of_a_snapshot_is_read_again_too(node: NodeModule) -> None:
    got = play(node, [{"fails": {1: "memory"}}, {}], [{"restore": [1, 2, 3]}, [[4]], [[5]]])
    assert got["log"] == ["gpu 4", "cpu 1 2 3 4", "cpu 5"]
    assert (got["runtime"], got["faults"], got["length"]) == ("cpu", [], 5)


def test_the_processors_smaller_chunk_is_kept_to(node: NodeModule) -> None:
    """Seven tokens are pending as one chunk of the graphics chip; the processor takes three at a time."""
    got = play(node, [{"chunk": 8, "fails": {1: "memory"}}, {"chunk": 3}], [[[1, 2]], [[3, 4, 5, 6, 7, 8, 9], 2]])
    assert got["log"] == ["gpu 1 2", "cpu 1 2", "cpu 3 4 5", "cpu 6 7", "cpu 8 9"]
    assert got["last"] == {"ids": [9], "positions": 2}
    assert got["length"] == 9


def test_a_conversation_too_long_for_the_next_runtime_is_given_up_in_words(node: NodeModule) -> None:
    got = play(node, [{"fails": {2: "memory"}}, {"context": 3}], [*ASKED, [[6, 7]]])
    assert got["faults"] == ["too_long"]
    assert got["moved"] == ["memory: cpu"], "the notice says why it is another runtime that has no room"
    assert (got["runtime"], got["length"], got["inner"]) == ("cpu", 2, [6, 7])


def test_other_faults_are_the_callers_and_leave_the_cache_as_it_was(node: NodeModule) -> None:
    got = play(node, [{"fails": {1: "internal"}}], ASKED)
    assert (got["faults"], got["moved"], got["inner"]) == (["internal"], [], [1, 2, 3, 5])


def test_the_last_runtimes_fault_is_thrown(node: NodeModule) -> None:
    got = play(node, [{"fails": {1: "memory"}}], ASKED, "cpu")
    assert got["faults"] == ["memory"]
    assert got["inner"] == [1, 2, 3, 5]


@pytest.mark.parametrize(("refuses", "told"), [("wrong", "wrong"), ("memory", "memory"), ("internal", "internal")])
def test_the_first_that_opens_is_taken_and_the_others_are_told_of(node: NodeModule, refuses: str, told: str) -> None:
    got = play(node, [{"refuses": refuses}, {}], ASKED)
    assert (got["runtime"], got["moved"], got["length"]) == ("cpu", [f"{told}: cpu"], 5)
    assert got["wrong"] == (["gpu"] if refuses == "wrong" else [])


def test_if_none_opens_the_last_fault_is_thrown(node: NodeModule) -> None:
    got = play(node, [{"refuses": "device"}, {"refuses": "memory"}], [])
    assert (got["faults"], got["moved"]) == (["memory"], [])


def test_a_conversation_goes_on_when_the_last_runtime_works_again(node: NodeModule) -> None:
    """Lost, not to be had at the next step either, and there again at the one after."""
    starts = [{"fails": {2: "device"}}, {"refuses": "device"}, {}]
    got = play(node, starts, [*ASKED, [[6]]], "gpu")
    assert got["faults"] == ["device"]
    assert got["inner"] == [1, 2, 3, 4, 6]


def test_a_session_closed_while_another_runtime_opens_ends_and_leaves_none_behind(node: NodeModule) -> None:
    """Nor does it open one at a step that comes later."""
    got = play(node, [{"fails": {1: "memory"}}, {"wait": 60}, {}], [*ASKED[:1], {"closing": [4]}, [[5]]])
    assert got["faults"] == ["internal", "internal"]
    assert got["closed"] == [True, True]


def test_a_session_closed_while_none_is_open_refuses_a_step(node: NodeModule) -> None:
    starts = [{"fails": {1: "device"}}, {"refuses": "device"}, {}]
    got = play(node, starts, [*ASKED[:1], [[4]], {"closing": [5]}, [[6]]], "gpu")
    assert got["faults"] == ["device", "internal"]


def test_the_runtime_is_what_the_session_says_now(node: NodeModule) -> None:
    got = play(node, [{"becomes": "cpu 1"}], [[[1]]], "cpu")
    assert got["runtime"] == "cpu 1"
