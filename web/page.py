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
from storage import Storage
from turns import Answer, Turns

with open("words.json") as file:  # noqa: PTH123 - MicroPython has no pathlib
    words.load(json.load(file))
words.speak(js.handbill.language.spoken())


SOON_CHARACTERS = 20_000
"""Most that a question may have before it is known how much this model holds."""


class Page:
    """The conversation, and the messages to and from store and engine."""

    def __init__(self) -> None:
        self.channel = js.BroadcastChannel.new(js.handbill.channel)
        self.channel.onmessage = create_proxy(self._on_message)
        self.messages: list[dict[str, str]] = []
        self.answer: Answer | None = None  # The answer being written or waited for.
        self.turn = 0  # Number of the latest question; what the engine says of an earlier one comes too late.
        self.slug = ""
        self.title = ""  # The model's.
        self.runtime = ""  # Where the model runs (words.runtime says it); "" until it is ready.
        self.is_base = False
        self.characters = 0  # Most that a question may have for this model; 0 until it is known.
        self.bill = Bill(self.send)
        self.desk = Desk()
        self.turns = Turns(self._again)
        self.settings = Settings(self._on_language, lambda adapter: self._post("adapt", adapter=adapter))
        self.storage = Storage(self._post)
        on(by_id("composer"), "submit", self._on_submit)
        on(by_id("new-chat"), "click", lambda _: self._new_chat())
        on(js.window, "keydown", self._on_window_key)
        self.kiosk = Kiosk(self) if by_id("kiosk") else None
        js.handbill.up = True
        self._post("waiting")  # The store may have spoken before anybody listened.
        self.booting = asyncio.create_task(self._boot())

    async def _boot(self) -> None:
        """Start the engine as soon as it has booted."""
        try:
            engine = js.single.engine if hasattr(js, "single") else await workers["engine"]
            await engine.start(js.handbill.channel)
        except Exception as error:
            js.handbill.failed(str(error.args[-1] if error.args else error))  # Of JavaScript's, the message.

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

    def _on_chosen(self, message: dict) -> None:  # type: ignore[type-arg]
        if self.slug:
            return  # The store says it again to whoever comes late.
        offers = {offer["slug"]: offer for offer in message["offers"]}
        if not offers:
            self.desk.alarm(lambda: words.say("fault.no_model"))
            return
        self.slug = message["slug"]
        self.settings.offer(message, js.handbill.runtime)
        chosen = offers.get(self.slug)
        if chosen:
            self.bill.name(chosen["title"])
            self.bill.cost(chosen["bytes"], message.get("page", 0))
            if message["warning"]:
                self.bill.kept("nowhere")
                title, count = chosen["title"], chosen["bytes"]
                self.desk.notice(lambda: words.say("warning.storage", title=title, size=words.size(count)))
            self.bill.because(message["why"] if len(offers) > 1 else "")
        if message["refusal"]:
            self.desk.alarm(lambda: words.refusal(message["refusal"], chosen["title"] if chosen else self.slug))

    def _on_booted(self, _: dict) -> None:  # type: ignore[type-arg]
        self._post("load", slug=self.slug, runtime=js.handbill.runtime, settings=self.settings.sampling())

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
        if message["why"]:
            row = "warning.full" if message["why"] == "full" else "warning.refused"
            self.desk.notice(lambda: words.say(row))
        if message["where"] in ("opfs", "cache"):
            self.desk.status(words.say("status.stored"), 100)
        else:
            self.desk.status(words.say("status.python"), 0)

    def _on_unkept(self, _: dict) -> None:  # type: ignore[type-arg]
        self.desk.notice(lambda: words.say("warning.full_site"))

    def _on_kept(self, message: dict) -> None:  # type: ignore[type-arg]
        self.storage.show(message)

    def _on_ready(self, message: dict) -> None:  # type: ignore[type-arg]
        js.handbill.started()
        self.runtime = message["runtime"]
        self.is_base = message["is_base"]
        self.characters = message["characters"]
        self.title = message["title"]
        if self.desk.length() > SOON_CHARACTERS:
            self.desk.notice(None)  # It may be sent now.
        self.bill.name(self.title)
        self.bill.runs_on(self.runtime)
        if message["moved"]:
            self.desk.notice(lambda: words.moved(message["moved"], message["runtime"]))
        self.settings.fit(message)
        if self.is_base:
            self.desk.prompt("desk.begin")
        self._idle()
        document.body.dataset.ready = words.runtime(self.runtime)
        if self.answer:
            self._ask()
        elif self.kiosk:
            self.kiosk.ready()

    def _on_moved(self, message: dict) -> None:  # type: ignore[type-arg]
        self.desk.notice(lambda: words.moved(message["why"], message["runtime"]))
        if self.runtime:
            self.runtime = message["runtime"]
            self.bill.runs_on(self.runtime)
            document.body.dataset.ready = words.runtime(self.runtime)

    def _on_adapted(self, message: dict) -> None:  # type: ignore[type-arg]
        adapter = self.settings.adapted(message["adapter"])
        self.bill.name(f"{self.title} + {adapter}" if adapter else self.title)
        document.body.dataset.adapter = message["adapter"]
        if not self.answer:
            self._idle()  # It may have been downloaded just now.

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
        kind, detail = message["fault"], message["detail"]
        if self.runtime and self.answer:
            self.answer.fail(words.fault(kind), detail)
            self.desk.give_back(self.messages.pop()["content"])  # It was not answered: it goes back to be changed.
            self._end()
        else:
            if self.answer:
                self.answer.fail(words.say("turns.not_loaded"))
                self.answer = None
            self.desk.alarm(lambda: words.fault(kind), detail)
        if self.kiosk:
            self.kiosk.fault(kind)

    # What the visitor does.

    def _on_submit(self, event: Event) -> None:
        event.preventDefault()
        if self.answer:
            self.stop()
        # Not drawn, not sent, not lost: a megabyte in the conversation would keep the browser busy for a minute.
        elif self.desk.length() > (self.characters or SOON_CHARACTERS):
            if self.characters:
                self.desk.status(words.say("fault.too_long"), None)
            else:
                self.desk.notice(lambda: words.say("warning.too_long_yet"))
        elif text := self.desk.take():
            self.send(text)

    def _on_window_key(self, event: Event) -> None:
        if event.key == "Escape" and self.answer and not self.settings.open:
            self.stop()

    def _on_language(self) -> None:
        words.speak(js.handbill.language.spoken())
        self.bill.redraw()
        self.desk.redraw()
        self.settings.redraw()
        self.storage.redraw()
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
        self.desk.hush()
        self._post("ask", turn=self.turn, messages=self._told(self.messages), settings=self.settings.sampling())

    def _told(self, messages: "list[dict[str, str]]") -> "list[dict[str, str]]":
        """``messages`` under the system prompt of now."""
        system = self.settings.system()
        return ([{"role": "system", "content": system}] if system else []) + messages

    def prepare(self, questions: "list[str]") -> None:
        """Have the engine read ``questions``, each the first of a conversation, while nobody asks anything."""
        told = [self._told([{"role": "user", "content": question}]) for question in questions]
        self._post("prepare", conversations=told)

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
        self.desk.notice(None)
        self._end()
        js.window.scrollTo(0, 0)

    def _end(self) -> None:
        self.answer = None
        self.desk.busy(False)
        if self.runtime:
            self._idle()

    def _idle(self) -> None:
        self.desk.status(words.say("status.ready", runtime=words.runtime(self.runtime)), None)


page = Page()
