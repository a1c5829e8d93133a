"""The DOM in few words (MicroPython): elements by their id, new ones, listeners, and text that follows the language."""

import js
from pyscript import document
from pyscript.ffi import create_proxy

import words


def by_id(name: str) -> "js.Element":
    """The element with that id."""
    return document.getElementById(name)


def element(tag: str, classes: str, text: str = "") -> "js.Element":
    """A new element."""
    made = document.createElement(tag)
    made.className = classes
    made.textContent = text
    return made


def details(text: str) -> "js.Element":
    """``text`` of the machine's own, which is English whatever the page speaks, for who wants to read it."""
    made = element("details", "details")
    made.append(element("summary", ""), element("p", "", text))
    label(made.firstElementChild, "details")
    made.lastElementChild.lang = "en"
    return made


def on(target: "js.Element", kind: str, handler: "object", passive: bool = True) -> None:
    """Call ``handler(event)`` at every ``kind`` event of ``target``, for good: MicroPython never frees a proxy.

    Browsers take a wheel's or a touch's listener for ``passive``: what it prevents happens all the same.
    """
    if passive:
        target.addEventListener(kind, create_proxy(handler))
    else:
        target.addEventListener(kind, create_proxy(handler), js.JSON.parse('{"passive": false}'))


def renew(field: "js.Element") -> "js.Element":
    """A new element in the place of the text ``field``, empty and with nothing that Undo could bring back."""
    fresh = field.cloneNode(False)
    fresh.value = ""
    field.replaceWith(fresh)
    return fresh


def label(target: "js.Element", row: str) -> None:
    """Let ``target`` say that row of words.json, in this language and in any that is chosen later (language.js)."""
    target.dataset.word = row
    target.textContent = words.say(row)


def write(target: "js.Element", text: str) -> None:
    """Let ``target`` say ``text``, which no choice of language changes."""
    target.removeAttribute("data-word")
    target.textContent = text
