"""The page: MicroPython on the main thread. With the modules it imports here it is the only code that knows the DOM.

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
from bill import Bill
from desk import Desk
from dom import by_id, on
from kiosk import Kiosk
from settings import Settings
from turns import Answer, Turns

with open("words.json") as file:  # noqa: PTH123 - MicroPython has no pathlib
    words.load(json.load(file))
words.speak(js.handbill.language.spoken())


class Page:
    """The conversation, and the messages to and from store and engine."""

    def __init__(self) -> None:
        self.channel = js.BroadcastChannel.new(js.handbill.channel)
        self.channel.onmessage = create_proxy(self._on_message)
        self.messages: list[dict[str, str]] = []
        self.answer: Answer | None = None  # The answer being written or waited for.
        self.turn = 0  # Number of the latest question; what the engine says of an earlier one comes too late.
        self.slug = ""
        self.runtime = ""  # Where the model runs, in words; "" until it is ready.
        self.is_base = False
        self.characters = 0  # Most that a question may have for this model; 0 until it is known.
        self.bill = Bill(self.send)
        self.desk = Desk()
        self.turns = Turns(self._again)
        self.settings = Settings(self._on_language)
        on(by_id("composer"), "submit", self._on_submit)
        on(by_id("new-chat"), "click", lambda _: self._new_chat())
        on(js.window, "keydown", self._on_window_key)
        self.kiosk = Kiosk(self) if by_id("kiosk") else None
        js.handbill.up = True
        self._post("waiting")  # The store may have spoken before anybody listened.
        self.booting = asyncio.create_task(self._boot())

    async def _boot(self) -> None:
        """What the site offers first, then the engine as soon as it has booted."""
        try:
            site = await (await js.fetch("site.json")).json()
            self._show_site(site)
            engine = js.single.engine if hasattr(js, "single") else await workers["engine"]
            await engine.start(js.handbill.channel)
        except Exception as error:
            self.desk.alarm(f"{words.fault('internal')} {error}")

    def _show_site(self, site: "js.Object") -> None:
        models = list(site.models)
        if not models:
            self.desk.alarm(words.say("fault.no_model"))
            return
        chosen = [model for model in models if model.slug == js.handbill.slug] or models[:1]
        self.slug = js.handbill.slug or chosen[0].slug
        self.bill.name(chosen[0].title)
        self.bill.cost(chosen[0].bytes)
        self.settings.offer(models, self.slug)

    # Messages of the store and the engine.

    def _post(self, kind: str, **fields: object) -> None:
        fields["kind"] = kind
        self.channel.postMessage(json.dumps(fields))

    def _on_message(self, event: Event) -> None:
        message = json.loads(event.data)
        if message.get("turn", self.turn) not in (0, self.turn):
            return
        handler = getattr(self, f"_on_{message['kind']}", None)
        if handler:  # Our own words on the channel do not come back, but another kind may be meant for the engine.
            handler(message)

    def _on_booted(self, _: dict) -> None:  # type: ignore[type-arg]
        self._post("load", slug=self.slug, runtime=js.handbill.runtime)

    def _on_progress(self, message: dict) -> None:  # type: ignore[type-arg]
        share = 100 * message["done"] / message["total"] if message["total"] else 0
        whole = message["stage"] == "download" and share >= 100
        self.desk.status(words.say("status.downloaded") if whole else words.progress(message), share)
        if self.answer and message["stage"] == "prefill":
            self.answer.say(words.say("turns.reading"))

    def _on_stored(self, message: dict) -> None:  # type: ignore[type-arg]
        if self.runtime:
            return
        self.bill.kept(message["where"])
        if message["where"] == "opfs":
            self.desk.status(words.say("status.stored"), 100)
        else:
            self.desk.status(words.say("status.python"), 0)

    def _on_ready(self, message: dict) -> None:  # type: ignore[type-arg]
        self.runtime = message["runtime"]
        self.is_base = message["is_base"]
        self.characters = message["characters"]
        self.bill.name(message["title"])
        self.bill.runs_on(self.runtime)
        self.settings.fit(message)
        if self.is_base:
            self.desk.prompt("desk.begin")
        self._idle()
        document.body.dataset.ready = self.runtime
        if self.answer:
            self._ask()

    def _on_piece(self, message: dict) -> None:  # type: ignore[type-arg]
        if not self.answer:
            return
        if not self.answer.text:
            self.desk.status(words.say("status.writing"), None)
            self.answer.say("")
        self.turns.add(message["text"], self.desk.follow)
        self.desk.speak(self.answer.unspoken(False))

    def _on_done(self, message: dict) -> None:  # type: ignore[type-arg]
        answer = self.answer
        if not answer:
            return
        self.desk.speak(answer.unspoken(True))
        answer.finish(message)
        if answer.text:
            self.messages.append({"role": "assistant", "content": answer.text})
        self._end()

    def _on_fault(self, message: dict) -> None:  # type: ignore[type-arg]
        sentence = f"{words.fault(message['fault'])} {message['detail']}".strip()
        if self.runtime and self.answer:
            self.answer.fail(sentence)
            self.desk.give_back(self.messages.pop()["content"])  # It was not answered: it goes back to be changed.
            self._end()
        else:
            if self.answer:
                self.answer.fail(words.say("turns.not_loaded"))
                self.answer = None
            self.desk.alarm(sentence)
        if self.kiosk:
            self.kiosk.fault(message["fault"])

    # What the visitor does.

    def _on_submit(self, event: Event) -> None:
        event.preventDefault()
        if self.answer:
            self.stop()
        elif self.characters and self.desk.length() > self.characters:
            # Not drawn, not sent, not lost: a megabyte in the conversation would keep the browser busy for a minute.
            self.desk.status(words.say("fault.too_long"), None)
        elif text := self.desk.take():
            self.send(text)

    def _on_window_key(self, event: Event) -> None:
        if event.key == "Escape" and self.answer and not self.settings.open:
            self.stop()

    def _on_language(self) -> None:
        words.speak(js.handbill.language.spoken())
        self.bill.redraw()
        if self.runtime and not self.answer:
            self._idle()

    def send(self, text: str) -> None:
        """Ask ``text``, unless an answer is under way."""
        if self.answer:
            return
        self.bill.show(False)
        by_id("new-chat").disabled = False
        self.messages.append({"role": "user", "content": text})
        if not self.is_base:
            self.turns.ask(text)
        self._begin()

    def _begin(self) -> None:
        """Make room for an answer and ask for it, now or when the model is ready."""
        self.turn += 1
        self.answer = self.turns.begin(self.messages[-1]["content"] if self.is_base else "")
        self.answer.say(words.say("turns.reading" if self.runtime else "turns.waiting"))
        self.desk.busy(True)
        if self.runtime:
            self._ask()

    def _ask(self) -> None:
        messages = self.messages
        system = self.settings.system()
        if system:
            messages = [{"role": "system", "content": system}] + messages  # noqa: RUF005 - MicroPython lacks [*a, b]
        self.desk.hush()
        self._post("ask", turn=self.turn, messages=messages, settings=self.settings.sampling())

    def stop(self) -> None:
        """End the answer under way; one that waits for the model is taken back."""
        if self.runtime:
            self._post("stop", turn=self.turn)
        else:
            self.turns.unask()
            self.desk.give_back(self.messages.pop()["content"])
            self._end()

    def _again(self) -> None:
        if self.answer or not self.turns.last:
            return
        if self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        self.turns.take_back()
        self._begin()

    def _new_chat(self) -> None:
        if self.answer:
            self._post("stop", turn=self.turn)
        self._clear()

    def forget(self) -> None:
        """Leave nothing of the conversation, here or in the engine."""
        self._post("forget", turn=self.turn)
        self._clear()
        self.desk.forget()
        self.settings.forget()

    def _clear(self) -> None:
        self.turn += 1  # Whatever still comes belongs to nobody.
        self.messages = []
        self.turns.clear()
        self.bill.show(True)
        by_id("new-chat").disabled = True
        self._end()
        js.window.scrollTo(0, 0)

    def _end(self) -> None:
        self.answer = None
        self.desk.busy(False)
        if self.runtime:
            self._idle()

    def _idle(self) -> None:
        self.desk.status(words.say("status.ready", runtime=self.runtime), None)


page = Page()
