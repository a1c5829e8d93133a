"""The settings: sampling, system prompt, model and language, and what of them this browser keeps (MicroPython)."""

import json

import js
from js import Event

import words
from dom import by_id, element, label, on

SLIDERS = ("temperature", "top_p")
SAMPLING = ("temperature", "top_p", "max_tokens")
KEPT = "settings"


class Settings:
    """The dialog and the choices made in it. ``spoken()`` is called when another language was chosen."""

    def __init__(self, spoken: "object") -> None:
        self._spoken = spoken
        self._chosen = _kept()
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

    def offer(self, models: "list[js.Object]", slug: str) -> None:
        """Let the visitor choose among the site's models; ``slug`` is the one of now."""
        for model in models:
            _option("model-choice", model.slug, f"{model.title} ({words.size(model.bytes)})")
        by_id("model-choice").value = slug
        by_id("model-field").hidden = len(models) < 2

    def fit(self, ready: dict) -> None:  # type: ignore[type-arg]
        """Take defaults and limits from the ``ready`` message of the model."""
        self._defaults = ready["generation"]
        by_id("max_tokens").max = self._most or ready["context"]
        if not ready["takes_system"]:
            by_id("system").disabled = True
            label(by_id("system-note"), "settings.system_none")
        self._show()

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
        by_id("language-choice").value = ""
        js.handbill.language.fill()
        self._spoken()  # type: ignore[operator]
        self._show()

    def _show(self) -> None:
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
        elif name == "model-choice":
            js.location.search = f"?model={value}"
        else:
            if name == "system":
                self._chosen[name] = value.strip()
            elif name in SLIDERS:
                self._chosen[name] = float(value)
            elif name == "max_tokens" and event.target.checkValidity() and value:
                self._chosen[name] = int(value)
            js.handbill.kept.set(KEPT, json.dumps(self._chosen))

    def _on_defaults(self, _: Event) -> None:
        self._chosen = {}
        js.handbill.kept.set(KEPT, "")
        self._show()


def _option(select: str, value: str, text: str) -> None:
    option = element("option", "", text)
    option.value = value
    by_id(select).append(option)


def _kept() -> dict:  # type: ignore[type-arg]
    """The choices of an earlier visit. Others may write there too: what is not a choice of ours is left out."""
    try:
        found = json.loads(js.handbill.kept.get(KEPT) or "{}")
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    chosen = {name: found[name] for name in SAMPLING if isinstance(found.get(name), (int, float))}
    if isinstance(found.get("system"), str):
        chosen["system"] = found["system"]
    return chosen
