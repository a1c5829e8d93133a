"""Figures and faults in words, for the page. No DOM here: MicroPython runs it on the page and CPython in the tests."""

FAULTS = {
    "manifest": "The description of the model cannot be used.",
    "download": "The model could not be downloaded. Check the connection, then load again.",
    "corrupt": "A part of the model arrived damaged, twice. The copy on the server has to be replaced.",
    "storage": "This browser has no room to keep the model. Free some space, then load again.",
    "memory": "This device ran out of memory. Close other tabs, or choose a smaller model, then load again.",
    "device": "The graphics chip stopped or is not to be had. Load again; ?runtime=cpu uses the processor instead.",
    "too_long": "The conversation has grown too long for this model.",
    "template": "This model cannot take the conversation in this form.",
    "internal": "Something went wrong that should not have.",
}

REASONS = {
    "stopped": "stopped",
    "length": "cut at the longest answer set",
    "context": "the model’s memory is full: start a new chat",
}


def fault_sentence(fault: str, detail: str) -> str:
    """What the page says of a fault: its kind in words, then the detail."""
    words = FAULTS.get(fault, FAULTS["internal"])
    return f"{words} {detail}" if detail else words


def size(count: float) -> str:
    """``count`` bytes in decimal units, as file managers and data plans count them."""
    if count < 1_000_000:
        return f"{max(1, round(count / 1000))} kB" if count else "0 kB"
    if count < 1_000_000_000:
        return f"{round(count / 1_000_000)} MB"
    return f"{count / 1_000_000_000:.2f} GB"


def duration(seconds: float) -> str:
    """``seconds`` to come, rounded to what a person waits by."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def progress(message: dict) -> str:  # type: ignore[type-arg]  # MicroPython has no typing module
    """A ``progress`` message as one line."""
    done, total = message["done"], message["total"]
    if message["stage"] == "open":
        return "Opening the model …"
    if message["stage"] == "prefill":
        line = f"Reading · {done} of {total} tokens"
    else:
        line = f"Downloading · {size(done)} of {size(total)}"
        if message.get("rate") and done < total:
            line += f" · {size(message['rate'])}/s"
    left = message.get("seconds_left")
    if left and done < total:
        line += f" · {duration(left)} left"
    return line


def figures(done: dict) -> str:  # type: ignore[type-arg]
    """What an answer took, from its ``done`` message."""
    count = done["tokens"]
    parts = [f"{count} token" if count == 1 else f"{count} tokens"]
    speed = done["tokens_per_second"]
    if speed:
        parts.append(f"{speed:.1f} tokens/s" if speed < 20 else f"{round(speed)} tokens/s")
    if done["first_token_seconds"]:
        parts.append(f"first after {done['first_token_seconds']:.1f} s")
    if done["reason"] in REASONS:
        parts.append(REASONS[done["reason"]])
    return " · ".join(parts)


def sentences(text: str, start: int) -> int:
    """Where the last whole sentence of ``text`` ends, at or after ``start``: up to there it can be read aloud."""
    end = start
    for at in range(start, len(text)):
        char = text[at]
        if char == "\n" or (char == " " and at > start and text[at - 1] in ".!?:;"):
            end = at + 1
    return end
