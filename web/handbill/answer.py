"""The answer so far: its tokens, the text that may be shown, and when its first and last token came."""

from __future__ import annotations

from handbill.events import Done
from handbill.sampling import Settings
from handbill.session import Tokenizer
from handbill.stream import Detokenizer, StopStrings


class Answer:
    """What has come so far. At most ``settings.max_tokens`` tokens are taken; ``started`` is when it was asked for, in
    seconds of any clock that does not run backwards."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings, started: float) -> None:
        self.ids: list[int] = []
        self._most = settings.max_tokens
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_strings = StopStrings(settings.stop)
        self._text = ""
        self._started = started
        self._first: float | None = None
        self._last = started

    def end(self, now: float) -> str:
        """Note that an eos token came at ``now``; the reason for the end."""
        self._mark(now)
        return "eos"

    def add(self, token: int, now: float) -> str:
        """Append ``token``, which came at ``now``; the reason why the answer ends with it, or ""."""
        self._mark(now)
        self.ids.append(token)
        self._text = self._stop_strings.push(self._detokenizer.push(token))
        if self._stop_strings.found is not None:
            return "stop"
        return "length" if len(self.ids) == self._most else ""

    def take(self) -> str:
        """The text that came with the latest token and may be shown."""
        text, self._text = self._text, ""
        return text

    def finish(self) -> str:
        """The text held back so far; nothing after a stop string."""
        return self._stop_strings.push(self._detokenizer.finish()) + self._stop_strings.finish()

    def done(self, reason: str, prompt_tokens: int, reused_tokens: int) -> Done:
        """The closing event."""
        first = self._started if self._first is None else self._first
        seconds = self._last - first
        steps = len(self.ids) - (0 if reason == "eos" else 1)
        return Done(
            reason=reason,
            prompt_tokens=prompt_tokens,
            reused_tokens=reused_tokens,
            tokens=len(self.ids),
            first_token_seconds=first - self._started,
            tokens_per_second=steps / seconds if seconds > 0 and steps > 0 else 0.0,
            ids=self.ids,
        )

    def _mark(self, now: float) -> None:
        if self._first is None:
            self._first = now
        self._last = now
