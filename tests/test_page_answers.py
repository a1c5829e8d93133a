"""Answers with markup, scripts, addresses and tricky signs: the page shows them as text, and nothing more."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from lone_page import DONE, ask, lone_page, say
from tabs import Tab

pytestmark = pytest.mark.page

HOSTILE = """[press](javascript:hit('link')) [data](data:text/html,<script>hit('data')</script>) [by name][1]

<script>hit('script')</script><img src=x onerror="hit('picture')"><svg onload="hit('svg')"></svg>
<a href="javascript:hit('a')" onclick="hit('click')">raw</a> <iframe src="https://outside.test/"></iframe>
![shown](https://outside.test/x.png) <style>* { display: none }</style><form action="https://outside.test/"></form>

[1]: javascript:hit('reference')

**bold** and [a link](https://outside.test/?q=secret)
"""

MANY = 100_000
SIGNS = {
    "harmless": "ab",
    "zero width": "\u200b\u2060\ufeff\u00ad",
    "bidi controls": "\u202e\u2067\u202d\u200f\u061c",
    "marks": "\u0301\u0489\u0323\u0336",
    "right to left": "\u05d0\u05d1",
}
"""Of which a question and its answer are made, each within one line: letters twice, signs so many times in all."""


def answer(tab: Tab, text: str, question: str = "Hello", turn: int = 1) -> None:
    """Have the page write ``text``, in 40 pieces, as its answer to ``question``, which is that turn."""
    ask(tab, question, characters=MANY)
    size = -(-len(text) // 40)
    for start in range(0, len(text), size):
        say(tab, {"kind": "piece", "turn": turn, "text": text[start : start + size]})
    say(tab, DONE, turn=turn)
    tab.page.locator(".answer[data-ids]").wait_for()


def test_nothing_in_an_answer_runs_opens_or_loads(chromium: Browser, tiny_site: Path) -> None:
    with lone_page(chromium, tiny_site) as tab:
        page = tab.page
        page.evaluate("() => { self.hits = []; self.hit = (what) => hits.push(what); }")
        answer(tab, HOSTILE)
        body = page.locator(".answer .body").first
        assert (
            body.locator("a, script, img, svg, iframe, style, form, [onclick], [onerror], [href], [src]").count() == 0
        )
        text = body.inner_text()
        assert all(word in text for word in ("press", "by name", "raw", "[shown]"))
        assert "a link (https://outside.test/?q=secret)" in text, "spelled out, for a reader to judge"
        assert body.locator("strong").inner_text() == "bold"
        for link in body.locator(".link").all():
            link.click()
        page.wait_for_timeout(300)
        assert page.evaluate("hits") == []
        assert tab.outside == []
        assert page.is_visible("#message")


def test_no_sign_of_a_conversation_touches_what_is_around_it(chromium: Browser, tiny_site: Path) -> None:
    """Neither by being many nor by what it does to its neighbours: a picture of all the rest stays the same.

    Of the marks on a letter thirty stay: a hundred thousand keep a browser busy for a minute at each layout.
    """
    with lone_page(chromium, tiny_site) as tab:
        page = tab.page
        pictures = {}
        for number, (name, signs) in enumerate(SIGNS.items()):
            text = "a" + (signs * MANY)[: 2 if signs.isalpha() else MANY - 2] + "b"
            answer(tab, text, text, turn=1 + 2 * number)  # A new chat counts, too.
            for place in (".question p", ".answer .body"):
                shown = page.locator(place).evaluate("(element) => element.textContent.trim()")
                assert shown == ("a" + (signs * 8)[:30] + "b" if name == "marks" else text), name
            page.mouse.move(5, 5)
            desk = page.locator(".desk").bounding_box()
            assert desk
            around = {"x": 0, "y": 0, "width": page.evaluate("innerWidth"), "height": desk["y"]}
            written = [page.locator(place) for place in (".question", ".answer .body")]
            pictures[name] = page.screenshot(mask=written, clip=around)  # type: ignore[arg-type]
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            page.click("#new-chat")
        assert [name for name, picture in pictures.items() if picture != pictures["harmless"]] == []


RIGHT_TO_LEFT = """مرحبا (Paris) يا صديقي.

- أولا
- ثانيا
- third

| أ | ب |
|---|---|
| ج | د |

```
مرحبا = 1
```

And English."""

LAID_OUT = """() => {
    const box = (element) => element.getBoundingClientRect();
    const text = (element) => {
        const range = document.createRange();
        range.selectNodeContents(element);
        return box(range);
    };
    const body = document.querySelector(".answer .body");
    const [hello, list, table, , english] = body.children;
    return {
        directions: [...body.children].map((element) => getComputedStyle(element).direction),
        flush: [box(body).right - text(hello).right, text(english).left - box(body).left],
        marks: box(body).right - box(list.firstElementChild).right,
        third: text(list.children[2]).left - box(list).left,
        cells: [...table.querySelectorAll("td")].map((cell) => box(cell).left),
    };
}"""


def test_an_answer_from_right_to_left_is_laid_out_so(chromium: Browser, tiny_site: Path) -> None:
    with lone_page(chromium, tiny_site) as tab:
        answer(tab, RIGHT_TO_LEFT)
        found = tab.page.evaluate(LAID_OUT)
        assert found["directions"] == ["rtl", "rtl", "rtl", "ltr", "ltr"]
        assert max(map(abs, found["flush"])) < 2
        assert found["marks"] > 10, "a list's marks stand where its lines begin"
        assert abs(found["third"]) < 2, "a line in between has its own direction"
        assert found["cells"] == sorted(found["cells"], reverse=True)
