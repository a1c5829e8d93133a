"""Choose the next token from the likeliest candidates of a step.

Order of the filters is transformers': repetition penalty, temperature, top-k, top-p, min-p. They see the session's 64
candidates instead of the whole vocabulary: probabilities are shares of the candidates' mass, and a penalty cannot
lift a token from outside them.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from handbill.manifest import Generation
from handbill.session import Candidates


class SettingsError(ValueError):
    """A setting out of its range. The message is a sentence for the reader."""

    kind = "internal"


@dataclass(frozen=True)
class Settings:
    """How an answer is sampled; the fields are those of ``ask.settings``. Raises SettingsError out of range.

    ``temperature`` 0 is greedy (0 to 5). ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and ``repetition_penalty`` 1 are off.
    ``seed`` None draws a fresh one; the same seed gives the same answer. An answer ends after ``max_tokens`` tokens or
    before the first of the ``stop`` strings.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 50
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 512
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _number(self.temperature, "temperature", 0, 5)
        _number(self.top_p, "top_p", 0, 1, above=True)
        _number(self.min_p, "min_p", 0, 1)
        _number(self.repetition_penalty, "repetition_penalty", 0, 10, above=True)
        _whole(self.top_k, "top_k", 0)
        _whole(self.max_tokens, "max_tokens", 1)
        if self.seed is not None:
            _whole(self.seed, "seed", 0)
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise SettingsError("stop should be a list of texts, none of them empty.")

    @classmethod
    def from_message(cls, settings: Mapping[str, Any], defaults: Generation) -> Settings:
        """``ask.settings`` over the model's own ``defaults``; what is absent or null is the default's.

        Raises SettingsError for an unknown name or a value out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise SettingsError(f"There is no setting {unknown[0]!r}; the settings are {', '.join(sorted(known))}.")
        values = dataclasses.asdict(defaults) | {key: value for key, value in settings.items() if value is not None}
        if isinstance(values.get("stop"), list):
            values["stop"] = tuple(values["stop"])
        return cls(**values)


def refused(settings: Mapping[str, Any], defaults: Generation) -> list[str]:
    """Names of the ``settings`` that ``Settings.from_message`` would refuse, each looked at alone."""
    names = []
    for name, value in settings.items():
        try:
            Settings.from_message({name: value}, defaults)
        except SettingsError:
            names.append(name)
    return names


class Sampler:
    """Chooses one token after another for one answer. ``context`` holds the prompt's token ids, for the penalty.

    One random number is drawn for every sampled token, so that an answer depends on the seed and the logits alone, and
    not on how many tokens a step checked at once.
    """

    def __init__(self, settings: Settings, context: Iterable[int] = ()) -> None:
        self._settings = settings
        self._random = random.Random(settings.seed)
        self._penalized = settings.repetition_penalty != 1.0
        self._seen = set(context) if self._penalized else set()

    def choose(self, candidates: Candidates) -> int:
        """The next token id out of ``candidates`` (at least one, logits finite, largest first)."""
        if self._settings.temperature == 0 and not self._penalized:
            return int(candidates.ids[0])
        ranked = list(zip(candidates.logits, candidates.ids, strict=True))
        if self._penalized:
            ranked = self._penalize(ranked)
        token = ranked[0][1] if self._settings.temperature == 0 else self._sample(ranked)
        if self._penalized:
            self._seen.add(token)
        return int(token)

    def _penalize(self, ranked: list[tuple[float, int]]) -> list[tuple[float, int]]:
        """Logits of seen tokens moved down (CTRL, arXiv 1909.05858), largest first again; ties keep their order."""
        penalty, seen = self._settings.repetition_penalty, self._seen
        moved = [
            ((logit / penalty if logit > 0 else logit * penalty) if token in seen else logit, token)
            for logit, token in ranked
        ]
        moved.sort(key=lambda pair: -pair[0])
        return moved

    def _sample(self, ranked: list[tuple[float, int]]) -> int:
        """Draw from ``ranked`` (logit, id), largest first."""
        settings = self._settings
        if settings.top_k:
            ranked = ranked[: settings.top_k]
        top = ranked[0][0]
        weights = [math.exp((logit - top) / settings.temperature) for logit, _ in ranked]
        if settings.top_p < 1:
            del weights[_nucleus(weights, settings.top_p) :]
        if settings.min_p > 0:
            # The likeliest weighs exactly 1, so a share of its probability is a share of 1; weights only fall.
            while weights[-1] < settings.min_p:
                weights.pop()
        mark = self._random.random() * sum(weights)
        for weight, (_, token) in zip(weights, ranked, strict=False):
            mark -= weight
            if mark < 0:
                return token
        return ranked[len(weights) - 1][1]


def _nucleus(weights: list[float], top_p: float) -> int:
    """How many of the falling ``weights`` it takes to reach a share ``top_p`` of their sum; at least one."""
    wanted = top_p * sum(weights)
    reached = 0.0
    for count, weight in enumerate(weights, 1):
        reached += weight
        if reached >= wanted:
            return count
    return len(weights)


def _number(value: object, name: str, low: float, high: float, *, above: bool = False) -> None:
    """Refuse what is not a number from ``low`` (or ``above`` it) to ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingsError(f"{name} should be a number, not {value!r}.")
    if not (low < value or (value == low and not above)) or not value <= high:
        span = f"above {low} and at most {high}" if above else f"between {low} and {high}"
        raise SettingsError(f"{name} should be {span}, not {value}.")


def _whole(value: object, name: str, low: int) -> None:
    """Refuse what is not a whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingsError(f"{name} should be a whole number, not {value!r}.")
    if value < low:
        raise SettingsError(f"{name} should be at least {low}, not {value}.")
