"""The settings: sampling, system prompt, model, adapter, language; what of them this browser keeps (MicroPython)."""

import json

import js
from js import Event

import words
from dom import by_id, element, label, on

SLIDERS = ("temperature", "top_p")
SAMPLING = ("temperature", "top_p", "max_tokens")
KEPT = "settings"


class Settings:
    """The dialog and the choices made in it.

    ``spoken()`` is called when another language was chosen, ``adapt(name)`` when another adapter was ("" for none).
    """

    def __init__(self, spoken: "object", adapt: "object") -> None:
        self._spoken = spoken
        self._adapt = adapt
        self._adapters: dict[str, str] = {}  # Titles of the model's by their names.
        self._adapter = ""  # The one in use, or asked for.
        self._offers: list[dict] = []  # type: ignore[type-arg]  # The models to choose from, as ``chosen`` has them.
        self._found = _kept()
        self._chosen = dict(self._found)
        self._defaults: dict[str, float] = {}
        self._most = 0  # Longest answer that a kiosk allows, in tokens; 0 for no bound of its own.
        self._given_system = ""  # The kiosk's system prompt.
        self._dialog = by_id("settings")
        on(by_id("open-settings"), "click", self._on_open)
        on(self._dialog, "change", self._on_change)
        on(self._dialog, "input", self._on_input)
        on(by_id("defaults"), "click", self._on_defaults)
        for code in js.Object.keys(js.handbill.language.LANGUAGES):
            _option("language-choice", code, js.handbill.language.LANGUAGES[code])
        by_id("language-choice").value = js.handbill.language.chosen()

    @property
    def open(self) -> bool:
        """Whether the dialog is open."""
        return bool(self._dialog.open)

    def offer(self, chosen: dict, runtime: str) -> None:  # type: ignore[type-arg]
        """Let the visitor choose another model or runtime than those of the ``chosen`` message; ``runtime`` is the one
        asked for so far, "" for the best."""
        self._offers = chosen["offers"]
        for model in self._offers:
            _option("model-choice", model["slug"], "")
        self.redraw()
        for name in chosen["runtimes"]:
            label(_option("runtime-choice", name, ""), f"settings.runtime_{name}")
        by_id("model-choice").value = chosen["slug"]
        by_id("runtime-choice").value = runtime
        by_id("model-field").hidden = all(model["slug"] == chosen["slug"] for model in self._offers)
        by_id("runtime-field").hidden = len(chosen["runtimes"]) < 2

    def redraw(self) -> None:
        """Say the models in the language of now."""
        for option, model in zip(by_id("model-choice").options, self._offers):  # noqa: B905 - MicroPython has no strict
            row = "settings.model_refused" if model["refusal"] else "settings.model_size"
            option.textContent = words.say(row, title=model["title"], size=words.size(model["bytes"]))

    def fit(self, ready: dict) -> None:  # type: ignore[type-arg]
        """Take defaults and limits from the ``ready`` message of the model."""
        self._defaults = ready["generation"]
        for name in ready["refused"]:
            if self._chosen.get(name) == self._found.get(name):
                self._chosen.pop(name, None)
        by_id("max_tokens").max = self._most or ready["context"]
        if not ready["takes_system"]:
            by_id("system").disabled = True
            label(by_id("system-note"), "settings.system_none")
        for adapter in ready["adapters"]:
            self._adapters[adapter["name"]] = adapter["title"]
            _option("adapter-choice", adapter["name"], adapter["title"])
        by_id("adapter-field").hidden = not self._adapters
        if self._chosen.get("adapter") in self._adapters:
            self._switch(self._chosen["adapter"])
        self._show()

    def adapted(self, adapter: str) -> str:
        """The engine answers with ``adapter`` from now on; its title, "" for none."""
        self._adapter = by_id("adapter-choice").value = adapter
        if adapter != self._chosen.get("adapter", ""):
            self._chosen["adapter"] = adapter
            self._keep()
        return self._adapters.get(adapter, "")

    def sampling(self) -> "dict[str, float]":
        """What the visitor, or the kiosk, chose of an ``ask`` message's settings."""
        chosen = {name: self._chosen[name] for name in SAMPLING if name in self._chosen}
        if self._most:
            chosen["max_tokens"] = min(self._most, chosen.get("max_tokens", self._most))
        return chosen

    def system(self) -> str:
        """The system prompt, "" for none."""
        return "" if by_id("system").disabled else self._chosen.get("system", self._given_system)

    def furnish(self, system: str, most: int) -> None:
        """A kiosk's system prompt and longest answer in tokens."""
        self._given_system, self._most = system, most
        by_id("max_tokens").max = most

    def forget(self) -> None:
        """Undo all choices."""
        self._chosen = {}
        self._switch("")
        by_id("language-choice").value = ""
        js.handbill.language.fill()
        self._spoken()  # type: ignore[operator]
        self._show()

    def _switch(self, adapter: str) -> None:
        if adapter != self._adapter:
            self._adapter = adapter
            self._adapt(adapter)  # type: ignore[operator]

    def _keep(self) -> None:
        js.handbill.kept.set(KEPT, json.dumps(self._chosen))

    def _show(self) -> None:
        by_id("adapter-choice").value = self._adapter
        by_id("system").value = self._chosen.get("system", self._given_system)
        values = dict(self._defaults, **self.sampling())
        for name in SAMPLING:
            by_id(name).value = values.get(name, "")
        self._show_values()

    def _show_values(self) -> None:
        for name in SLIDERS:
            by_id(f"{name}-value").textContent = words.decimal(f"{float(by_id(name).value):.2f}")

    def _on_open(self, _: Event) -> None:
        self._show()
        self._dialog.showModal()

    def _on_input(self, event: Event) -> None:
        """Take a text or number while it is written: closing by Escape brings no change event."""
        if event.target.tagName != "SELECT":
            self._on_change(event)
            self._show_values()

    def _on_change(self, event: Event) -> None:
        name, value = event.target.id, event.target.value
        if name == "language-choice":
            js.handbill.language.choose(value)
            self._spoken()  # type: ignore[operator]
            self._show_values()
        elif name in ("model-choice", "runtime-choice"):
            model, runtime = by_id("model-choice").value, by_id("runtime-choice").value
            js.location.search = f"?model={model}" + (f"&runtime={runtime}" if runtime else "")
        elif name == "adapter-choice":
            self._switch(value)
        else:
            if name == "system":
                self._chosen[name] = value.strip()
            elif name in SLIDERS:
                self._chosen[name] = float(value)
            elif name == "max_tokens" and event.target.checkValidity() and value:
                self._chosen[name] = int(value)
            self._keep()

    def _on_defaults(self, _: Event) -> None:
        self._chosen = {}
        self._switch("")
        js.handbill.kept.set(KEPT, "")
        self._show()


def _option(select: str, value: str, text: str) -> "js.Element":
    option = element("option", "", text)
    option.value = value
    by_id(select).append(option)
    return option


def _is_number(value: object) -> bool:
    """Whether JSON can say it: 1e999 is read as infinite."""
    return isinstance(value, (int, float)) and value - value == 0


def _kept() -> dict:  # type: ignore[type-arg]
    """The choices of an earlier visit. Others may write there too: what is not a choice of ours is left out here, what
    is out of its range by the engine (``refused`` of ``ready``).
    """
    try:
        found = json.loads(js.handbill.kept.get(KEPT) or "{}")
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    chosen = {name: found[name] for name in SAMPLING if _is_number(found.get(name))}
    for name in ("system", "adapter"):
        if isinstance(found.get(name), str):
            chosen[name] = found[name]
    return chosen
