"""The page on a graphics chip that fails (SwiftShader, made to): another runtime takes over, and it says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import altered_site
import native_answers
import page_models
import tabs
from tabs import Tab
from test_page_offline import wait_for_releases
from test_page_store import wait_for_file
from vendor import sha256_of

pytestmark = pytest.mark.page

GREEDY = {"temperature": 0, "max_tokens": 12}
SESSION = "sessions/webgpu.js"
JSPI = "ort-wasm-simd-threaded.jspi.wasm"
FAILING = (tabs.ROOT / "tests" / "webgpu" / "failing-chip.js").read_text(encoding="utf-8")
GARBLE = """{
  const mapped = GPUBuffer.prototype.getMappedRange;
  GPUBuffer.prototype.getMappedRange = function (...range) {
    const bytes = mapped.apply(this, range);
    if (this.mapState === "mapped" && this.usage & GPUBufferUsage.MAP_READ) {
      new Float32Array(bytes).forEach((_, i, values) => (values[i] = 9 * Math.sin(i * i)));
    }
    return bytes;
  };
}
"""
FAIL_AT = """([way, piece]) => {
  const fail = () => new BroadcastChannel("graphics chip").postMessage(way);
  if (!piece) return fail();
  let pieces = 0;
  const channel = new BroadcastChannel(handbill.channel);
  channel.onmessage = ({ data }) => {
    if (JSON.parse(data).kind !== "piece" || ++pieces < piece) return;
    channel.close();
    fail();
  };
}"""
"""Have the chip fail one way or another at the piece of that number of the next answer; 0 is now."""


@pytest.fixture
def home(tiny_site: Path, tmp_path: Path) -> Path:
    """A site whose page takes SwiftShader for a graphics chip."""
    site = altered_site.copy(tiny_site, tmp_path / "site")
    altered_site.trust_software(site)
    return site


@pytest.fixture(scope="module")
def right() -> list[list[int]]:
    """The tokens of three answers by a runtime that takes nothing over from anybody."""
    return native_answers.conversation(page_models.exported("tiny"), QUESTIONS, GREEDY["max_tokens"])


QUESTIONS = ("Hello", "And now?", "Why?")


def notice(tab: Tab) -> str:
    return tab.page.inner_text("#notice") if tab.page.is_visible("#notice") else ""


@contextmanager
def opened(gpu: Browser, home: Path, mischief: tabs.Mischief | None = None) -> Iterator[tuple[Tab, ExitStack]]:
    """The page of ``home`` in a new browser profile. Closing the stack ends the server."""
    with ExitStack() as server:
        tab = Tab(gpu.new_context().new_page(), server.enter_context(tabs.serving(home, mischief)))
        tab.open("?model=tiny", settings=GREEDY)
        yield tab, server
        tab.page.context.close()


def test_a_chip_that_computes_garbage_from_the_start_is_dropped(
    gpu: Browser, home: Path, right: list[list[int]]
) -> None:
    altered_site.change(home, SESSION, lambda text: GARBLE + text)
    with opened(gpu, home) as (tab, _):
        assert "processor" in tab.ready()
        assert "wrongly" in notice(tab)
        assert tab.ask(QUESTIONS[0])["ids"] == right[0]


def test_a_chip_that_computes_garbage_in_mid_answer_is_dropped_remembered_and_tried_again_when_asked(
    gpu: Browser, home: Path, right: list[list[int]]
) -> None:
    altered_site.change(home, SESSION, lambda text: FAILING + text)
    mischief = tabs.Mischief()
    with opened(gpu, home, mischief) as (tab, _):
        tab.page.evaluate(FAIL_AT, ["garble", 4])
        assert [tab.ask(question)["ids"] for question in QUESTIONS[:2]] == right[:2]
        assert "wrongly" in notice(tab) and "processor" in notice(tab)

        mischief.log.clear()
        tab.open("?model=tiny")
        assert "processor" in tab.ready()
        assert "wrongly" in notice(tab)
        assert mischief.log and not [line for line in mischief.log if JSPI in line], "not even looked at again"

        tab.page.click("#open-settings")
        with tab.page.expect_navigation():
            tab.page.select_option("#runtime-choice", "webgpu")
        assert "WebGPU" in tab.ready()
        tab.open("?model=tiny")
        assert "WebGPU" in tab.ready()
        assert not notice(tab)


@pytest.mark.parametrize(
    ("piece", "network"), [(4, True), (0, False)], ids=["in mid-answer", "while asleep and without a network"]
)
def test_a_conversation_survives_the_loss_of_the_device_and_of_the_chip(
    gpu: Browser, home: Path, right: list[list[int]], piece: int, network: bool
) -> None:
    """What the processor needs has come after the first answer."""
    altered_site.change(home, SESSION, lambda text: FAILING + text)
    altered_site.list_anew(home)
    with opened(gpu, home) as (tab, server):
        assert "WebGPU" in tab.ready()
        answers = [tab.ask(QUESTIONS[0])["ids"]]
        assert not notice(tab)
        if not network:
            wait_for_releases(tab, 1)
            wait_for_file(tab, sha256_of(home / "models" / "tiny" / "plan.json"))
            server.close()
        for question, way, runtime in zip(QUESTIONS[1:], ("lose", "unplug"), ("WebGPU", "processor"), strict=True):
            tab.page.evaluate(FAIL_AT, [way, piece])
            answers.append(tab.ask(question)["ids"])
            assert "stopped" in notice(tab) and runtime in notice(tab)
            assert runtime in tab.page.inner_text("#fact-runtime")
        assert answers == right


def test_memory_that_runs_out_in_mid_answer_moves_the_conversation_where_the_chip_alone_had_the_weights(
    gpu: Browser, home: Path, right: list[list[int]]
) -> None:
    """Where the browser keeps no files, the weights are in memory once, in the session: they come again."""
    altered_site.change(home, "place.js", lambda text: text.replace("  if (where", "  return null;\n  if (where", 1))
    altered_site.change(home, SESSION, lambda text: FAILING + text)
    mischief = tabs.Mischief()
    with opened(gpu, home, mischief) as (tab, _):
        assert "WebGPU" in tab.ready()
        answers = [tab.ask(QUESTIONS[0])["ids"]]
        mischief.asked.clear()
        tab.page.evaluate(FAIL_AT, ["exhaust", 4])
        answers.append(tab.ask(QUESTIONS[1])["ids"])
        assert "memory was not enough" in notice(tab) and "processor" in notice(tab)
        assert "processor" in tab.page.inner_text("#fact-runtime")
        assert any(name.startswith("weights-") for name, _ in mischief.asked)
        assert answers == right[:2]
