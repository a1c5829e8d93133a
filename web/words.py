"""The page's sentences and figures in the visitor's language, from the rows of words.json.

No DOM here: MicroPython runs it on the page and CPython in the tests.
"""

_table: "dict[str, dict[str, str]]" = {}
_language = "en"


def load(table: "dict[str, dict[str, str]]") -> None:
    """Take every sentence from ``table``: {row: {language: text}}."""
    global _table
    _table = table


def speak(language: str) -> None:
    """Say everything in ``language`` from now on."""
    global _language
    _language = language


def say(row: str, **values: object) -> str:
    """The text of ``row`` with ``values`` in the places it names, such as ``{size}``."""
    return _table[row][_language].format(**values)


def fault(kind: str) -> str:
    """What the page says of a fault of that kind; one that it does not know is an internal one."""
    row = f"fault.{kind}"
    return say(row if row in _table else "fault.internal")


def refusal(why: str, title: str) -> str:
    """Why the model of that title is not even downloaded; ``why`` may be a kind of fault."""
    row = f"refusal.{why}"
    return say(row, title=title) if row in _table else fault(why)


def moved(why: str, where: str) -> str:
    """That ``where`` has taken over, and what went wrong with the runtime before."""
    row = f"moved.{why}"
    return say(row if row in _table else "moved.other", runtime=runtime(where))


def runtime(where: str) -> str:
    """Where the model runs, from a session's ``runtime`` such as "cpu 2": a runtime's name and its threads."""
    name, threads = where.split(" ")
    return say(
        f"runtime.{name}", threads=say("runtime.thread") if threads == "1" else say("runtime.threads", n=threads)
    )


def size(count: float) -> str:
    """``count`` bytes in decimal units, as file managers and data plans count them."""
    if count < 1_000_000:
        return say("unit.kilobytes", n=max(1, round(count / 1000)) if count else 0)
    if count < 1_000_000_000:
        return say("unit.megabytes", n=round(count / 1_000_000))
    return say("unit.gigabytes", n=decimal(f"{count / 1_000_000_000:.2f}"))


def duration(seconds: float) -> str:
    """``seconds`` to come, rounded to what a person waits by."""
    if seconds < 60:
        return say("unit.seconds", n=max(1, round(seconds)))
    if seconds < 3600:
        return say("unit.minutes", n=round(seconds / 60))
    return say("unit.hours", n=decimal(f"{seconds / 3600:.1f}"))


def decimal(number: str) -> str:
    """A number with the language's decimal mark for its point."""
    return number.replace(".", say("decimal"))


def progress(message: dict) -> str:  # type: ignore[type-arg]  # MicroPython has no typing module
    """A ``progress`` message as one line."""
    done, total = message["done"], message["total"]
    if message["stage"] == "open":
        return say("status.opening")
    if message["stage"] == "prefill":
        parts = [say("status.reading", done=done, total=total)]
    else:
        parts = [say("status.downloading", done=size(done), total=size(total))]
        if message.get("pause"):
            parts.append(say("status.again", duration=duration(message["pause"])))
        elif message.get("rate") and done < total:
            parts.append(say("status.rate", size=size(message["rate"])))
    left = message.get("seconds_left")
    if left and done < total:
        parts.append(say("status.left", duration=duration(left)))
    return " · ".join(parts)


def figures(done: dict) -> str:  # type: ignore[type-arg]
    """What an answer took, from its ``done`` message."""
    count = done["tokens"]
    parts = [say("figures.token") if count == 1 else say("figures.tokens", n=count)]
    speed = done["tokens_per_second"]
    if speed:
        parts.append(say("figures.speed", n=decimal(f"{speed:.1f}") if speed < 20 else round(speed)))
    if done["first_token_seconds"]:
        parts.append(say("figures.first", n=decimal(f"{done['first_token_seconds']:.1f}")))
    row = f"reason.{done['reason']}"
    if row in _table:
        parts.append(say(row))
    return " · ".join(parts)


def sentences(text: str) -> int:
    """Where the last whole sentence of ``text`` ends: up to there it can be read aloud; 0 if none does."""
    end = 0
    before = " "
    # One by one: MicroPython finds text[at] by counting from the beginning, and text may be long.
    for at, char in enumerate(text, 1):
        if char == "\n" or (char == " " and before in ".!?:;"):
            end = at
        before = char
    return end
