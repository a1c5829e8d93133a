"""The page: MicroPython on the main thread, the only code that knows the DOM (with turns.py).

It draws and reacts before the engine is up, and talks to store and engine over the tab's BroadcastChannel in the
messages of ARCHITECTURE.md. A message sent before the model is ready waits for it.
"""

import asyncio
import json

import js
from js import Event
from pyscript import document, workers
from pyscript.ffi import create_proxy

import words
from turns import Answer, Question, element, on

NEAR_END_PX = 96
SLIDERS = ("temperature", "top_p")
SETTINGS = ("temperature", "top_p", "max_tokens")
SAVED = f"handbill settings {js.location.pathname}"


def by_id(name: str) -> "js.Element":
    """The element with that id."""
    return document.getElementById(name)


class Page:
    """What is on the screen, and what is going on."""

    def __init__(self) -> None:
        self.channel = js.BroadcastChannel.new(js.handbill.channel)
        self.channel.onmessage = create_proxy(self._on_message)
        self.messages: list[dict[str, str]] = []
        self.answer: Answer | None = None  # The answer being written or waited for.
        self.last: Answer | None = None
        self.ready = False
        self.is_base = False
        self.following = True
        self.defaults: dict[str, float] = {}
        self.chosen = json.loads(js.localStorage.getItem(SAVED) or "{}")
        self.slug = ""
        self._connect()
        self._fit()
        js.handbill.up = True
        by_id("message").focus()
        self.booting = asyncio.create_task(self._boot())

    def _connect(self) -> None:
        on(by_id("composer"), "submit", self._on_submit)
        on(by_id("message"), "keydown", self._on_key)
        on(by_id("message"), "input", self._fit)
        on(by_id("examples"), "click", self._on_example)
        on(by_id("new-chat"), "click", self._on_new_chat)
        on(by_id("retry"), "click", lambda _: js.location.reload())
        on(by_id("jump"), "click", self._on_jump)
        on(by_id("open-settings"), "click", self._on_open_settings)
        on(by_id("settings"), "change", self._on_setting)
        on(by_id("settings"), "input", self._show_values)
        on(by_id("defaults"), "click", self._on_defaults)
        on(by_id("model-choice"), "change", self._on_model)
        on(js.window, "scroll", self._on_scroll)
        on(js.window, "keydown", self._on_window_key)

    async def _boot(self) -> None:
        """What the site offers first, then the engine as soon as it has booted."""
        try:
            site = await (await js.fetch("site.json")).json()
            self._show_site(site)
            engine = await workers["engine"]
            await engine.start(js.handbill.channel)
        except Exception as error:
            self._alarm(words.fault_sentence("internal", str(error)))

    def _show_site(self, site: "js.Object") -> None:
        models = list(site.models)
        if not models:
            self._alarm("No model is on this site yet: export one, assemble the site again, then load this page again.")
            return
        chosen = [model for model in models if model.slug == js.handbill.slug] or models[:1]
        self.slug = js.handbill.slug or chosen[0].slug
        by_id("fact-model").textContent = by_id("model-name").textContent = chosen[0].title
        by_id("fact-load").textContent = f"{words.size(chosen[0].bytes)}, once"
        for model in models:
            option = element("option", "", f"{model.title} ({words.size(model.bytes)})")
            option.value = model.slug
            option.selected = model.slug == self.slug
            by_id("model-choice").append(option)
        by_id("model-field").hidden = len(models) < 2

    # Messages of the store and the engine.

    def _post(self, kind: str, **fields: object) -> None:
        fields["kind"] = kind
        self.channel.postMessage(json.dumps(fields))

    def _on_message(self, event: Event) -> None:
        message = json.loads(event.data)
        handler = getattr(self, f"_on_{message['kind']}", None)
        if handler:  # Our own words on the channel do not come back, but another kind may be meant for the engine.
            handler(message)

    def _on_booted(self, _: dict) -> None:  # type: ignore[type-arg]
        self._post("load", slug=self.slug, runtime=js.handbill.runtime)

    def _on_progress(self, message: dict) -> None:  # type: ignore[type-arg]
        share = 100 * message["done"] / message["total"] if message["total"] else 0
        line = words.progress(message)
        if message["stage"] == "download" and share >= 100:
            line = "Downloaded. Starting Python …"
        self._status(line, share)
        if self.answer and message["stage"] == "prefill":
            self.answer.say("Reading …")

    def _on_stored(self, message: dict) -> None:  # type: ignore[type-arg]
        if not self.ready:
            kept = message["where"] == "opfs"
            self._status("The model is here. Starting Python …" if kept else "Starting Python …", 100 if kept else 0)
            if not kept:
                fact = by_id("fact-load")
                fact.textContent = fact.textContent.replace("once", "at each visit")

    def _on_ready(self, message: dict) -> None:  # type: ignore[type-arg]
        self.ready = True
        self.is_base = message["is_base"]
        self.defaults = message["generation"]
        by_id("fact-model").textContent = by_id("model-name").textContent = message["title"]
        by_id("fact-runtime").textContent = message["runtime"]
        by_id("max_tokens").max = message["context"]
        document.body.dataset.ready = message["runtime"]
        if self.is_base:
            by_id("message").placeholder = "Begin a text, and the model goes on"
        if not message["takes_system"]:
            by_id("system").disabled = True
            by_id("system-note").textContent = "This model takes no system prompt."
        self._show_settings()
        self._idle()
        if self.answer:
            self._ask()

    def _on_piece(self, message: dict) -> None:  # type: ignore[type-arg]
        if not self.answer:
            return
        if not self.answer.text:
            self._status("Writing …", None)
            self.answer.say("")
        self.answer.add(message["text"], self._follow)
        self._speak(False)

    def _on_done(self, message: dict) -> None:  # type: ignore[type-arg]
        answer = self.answer
        if not answer:
            return
        self._speak(True)
        answer.finish(message)
        if answer.text:
            self.messages.append({"role": "assistant", "content": answer.text})
        self._end()

    def _on_fault(self, message: dict) -> None:  # type: ignore[type-arg]
        sentence = words.fault_sentence(message["fault"], message["detail"])
        if self.ready and self.answer:
            self.answer.fail(sentence)
            asked = self.messages.pop()["content"]  # It was not answered: it goes back to be changed.
            if not by_id("message").value:
                by_id("message").value = asked
                self._fit()
            self._end()
        else:
            if self.answer:
                self.answer.fail("The model did not load.")
                self.answer = None
            self._alarm(sentence)

    def _speak(self, final: bool) -> None:
        text = self.answer.unspoken(final) if self.answer else ""
        if text:
            by_id("live").append(element("span", "", text + " "))

    def _on_submit(self, event: Event) -> None:
        event.preventDefault()
        if self.answer:
            self._stop()
            return
        text = by_id("message").value.strip()
        if text:
            by_id("message").value = ""
            self._fit()
            self._send(text)

    def _on_key(self, event: Event) -> None:
        if event.key == "Enter" and not event.shiftKey and not event.isComposing:
            event.preventDefault()
            if not self.answer:
                by_id("composer").requestSubmit()

    def _on_window_key(self, event: Event) -> None:
        if event.key == "Escape" and self.answer and not by_id("settings").open:
            self._stop()

    def _on_example(self, event: Event) -> None:
        if event.target.tagName == "BUTTON" and not self.answer:
            self._send(event.target.textContent)

    def _send(self, text: str) -> None:
        by_id("bill").hidden = True
        by_id("new-chat").disabled = False
        self.messages.append({"role": "user", "content": text})
        if not self.is_base:
            Question(by_id("turns"), text)
        self._begin(text if self.is_base else "")

    def _begin(self, lead: str = "") -> None:
        """Make room for an answer and ask for it, now or when the model is ready."""
        if self.last:
            self.last.retire()
        self.answer = self.last = Answer(by_id("turns"), self._on_again, lead)
        self.answer.say("Reading …" if self.ready else "Waiting for the model …")
        by_id("send").textContent = "Stop"
        by_id("send").classList.add("stop")
        self.following = True
        self._follow()
        if self.ready:
            self._ask()

    def _ask(self) -> None:
        messages = self.messages
        system = self.chosen.get("system", "")
        if system and not by_id("system").disabled:
            messages = [{"role": "system", "content": system}] + messages  # noqa: RUF005 - MicroPython lacks [*a, b]
        settings = {name: self.chosen[name] for name in SETTINGS if name in self.chosen}
        by_id("live").replaceChildren()
        self._post("ask", messages=messages, settings=settings)

    def _stop(self) -> None:
        if self.ready:
            self._post("stop")
        elif self.answer:
            self.answer.root.remove()
            by_id("message").value = self.messages.pop()["content"]
            by_id("turns").lastElementChild.remove()
            self.last = None
            self._end()

    def _on_again(self, _: Event) -> None:
        if self.answer or not self.last:
            return
        if self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        self.last.root.remove()
        self._begin(self.messages[-1]["content"] if self.is_base else "")

    def _on_new_chat(self, _: Event) -> None:
        if self.answer:
            self._stop()
        self.messages = []
        self.answer = self.last = None
        by_id("turns").replaceChildren()
        by_id("bill").hidden = False
        by_id("new-chat").disabled = True
        self._end()

    def _end(self) -> None:
        self.answer = None
        by_id("send").textContent = "Send"
        by_id("send").classList.remove("stop")
        by_id("jump").hidden = True
        if self.ready:
            self._idle()
        self._follow()
        by_id("message").focus()

    # Status, alarm, scrolling.

    def _status(self, text: str, share: "float | None") -> None:
        by_id("status-text").textContent = text
        bar = by_id("bar")
        bar.classList.toggle("off", share is None)
        if share is not None:
            bar.setAttribute("aria-valuenow", str(round(share)))
            bar.firstElementChild.style.setProperty("transform", f"scaleX({share / 100:.4f})")

    def _idle(self) -> None:
        self._status(f"Ready · {by_id('fact-runtime').textContent}", None)

    def _alarm(self, sentence: str) -> None:
        by_id("alert-text").textContent = sentence
        by_id("alert").hidden = False
        self._status("", None)

    def _follow(self) -> None:
        """Keep the end of the answer in sight, unless the reader has scrolled up."""
        if self.following:
            js.window.scrollTo(0, document.documentElement.scrollHeight)
        else:
            by_id("jump").hidden = self.answer is None

    def _on_scroll(self, _: Event) -> None:
        root = document.documentElement
        self.following = root.scrollHeight - js.window.scrollY - js.window.innerHeight < NEAR_END_PX
        if self.following:
            by_id("jump").hidden = True

    def _on_jump(self, _: Event) -> None:
        self.following = True
        self._follow()
        by_id("jump").hidden = True

    def _fit(self, _: "Event | None" = None) -> None:
        """Let the message field grow with its text."""
        field = by_id("message")
        field.style.height = "auto"
        field.style.height = f"{field.scrollHeight}px"

    def _on_open_settings(self, _: Event) -> None:
        self._show_settings()
        by_id("settings").showModal()

    def _show_settings(self) -> None:
        by_id("system").value = self.chosen.get("system", "")
        for name in SETTINGS:
            by_id(name).value = self.chosen.get(name, self.defaults.get(name, ""))
        self._show_values()

    def _show_values(self, _: "Event | None" = None) -> None:
        for name in SLIDERS:
            by_id(f"{name}-value").textContent = f"{float(by_id(name).value):.2f}"

    def _on_setting(self, event: Event) -> None:
        name = event.target.id
        if name == "system":
            self.chosen[name] = event.target.value.strip()
        elif name in SLIDERS:
            self.chosen[name] = float(event.target.value)
        elif name == "max_tokens" and event.target.checkValidity() and event.target.value:
            self.chosen[name] = int(event.target.value)
        js.localStorage.setItem(SAVED, json.dumps(self.chosen))

    def _on_defaults(self, _: Event) -> None:
        self.chosen = {}
        js.localStorage.removeItem(SAVED)
        self._show_settings()

    def _on_model(self, event: Event) -> None:
        js.location.search = f"?model={event.target.value}"


page = Page()
