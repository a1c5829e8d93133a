"""Drives web/sessions/cpu.js under Node for the tests: a request in, NumPy arrays out."""

from __future__ import annotations

import base64
import functools
import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

import kernels
from handbill.session import Candidates

ROOT = Path(__file__).resolve().parent.parent
RUNNER = ROOT / "tests" / "kernels" / "run.mjs"


@dataclass(frozen=True)
class Answer:
    """One step: candidates [positions, k], all logits [positions, vocabulary] if asked for, seconds it took, and
    whether the snapshot it was to start from was restored."""

    ids: npt.NDArray[np.int32]
    top: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    seconds: float
    restored: bool | None = None


class FaultError(Exception):
    """What the session threw: its fault kind and its sentence; and how many workers it left running."""

    def __init__(self, kind: str, detail: str, left: int) -> None:
        super().__init__(detail)
        self.kind, self.left = kind, left


@functools.cache
def site() -> Path:
    """A folder with the compiled kernels, as dist/ has them."""
    folder = ROOT / ".cache" / "kernels-site"
    with FileLock(folder.with_suffix(".lock")):  # Other processes run tests beside this one.
        kernels.build(folder / "kernels", ROOT / ".cache" / "kernels")
    return folder


def case(folder: Path, steps: list[dict[str, Any]], *, threads: int = 1, **manifest: Any) -> dict[str, Any]:
    """The model in ``folder`` and ``steps`` ({ids, positions?, adapter?, rewind?, logits?, snapshot?, restore?, fails?,
    adapt_after?}) to run on it. The rest of what a case may say stands in tests/kernels/run.mjs.

    Before a step runs, ``snapshot`` keeps that many tokens of the KV cache, and ``restore`` ({ids, skip?}) brings
    them back, without the first ``skip`` bytes.

    ``manifest`` overrides keys of the manifest, of which ``plan``, ``files``, ``adapters`` and ``architecture.context``
    are read.
    """
    files = [{"name": path.name, "bytes": path.stat().st_size} for path in folder.iterdir() if path.is_file()]
    whole = {"plan": "plan.json", "files": files, "architecture": {"context": 512}} | manifest
    choice = {"threads": threads}
    return {"folder": str(folder), "manifest": whole, "choice": choice, "steps": steps}


def run_all(
    cases: list[dict[str, Any]], timeout: float | None = None
) -> list[tuple[dict[str, Any], list[Answer]] | FaultError]:
    """Every case in one Node process: what the session says of itself and its answers, or what it threw.

    Raises TimeoutExpired (subprocess) where all of them took longer than ``timeout`` seconds.
    """
    request = {"session": str(ROOT / "web" / "sessions" / "cpu.js"), "base": str(site()), "cases": cases}
    with tempfile.TemporaryDirectory() as scratch:
        question, answers = Path(scratch, "request.json"), Path(scratch, "answers")
        question.write_text(json.dumps(request | {"answers": str(answers)}))
        command = ["node", str(RUNNER), str(question)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
        if not answers.is_file() or done.returncode:
            raise AssertionError(done.stderr)
        lines = [json.loads(line) for line in answers.read_text().splitlines()]
    results: list[tuple[dict[str, Any], list[Answer]] | FaultError] = []
    for one, line in zip(cases, lines, strict=True):
        if "fault" in line:
            results.append(FaultError(line["fault"], line["detail"], line["left"]))
        else:
            results.append((line["info"], [_answer(*pair) for pair in zip(one["steps"], line["done"], strict=True)]))
    return results


def run(folder: Path, steps: list[dict[str, Any]], **options: Any) -> tuple[dict[str, Any], list[Answer]]:
    """One ``case`` alone. Raises FaultError."""
    (result,) = run_all([case(folder, steps, **options)])
    if isinstance(result, FaultError):
        raise result
    return result


class LiveSession:
    """The CPU session under Node as the runtime package knows sessions: a ``handbill.session.Session``."""

    drafts = 3

    def __init__(self, folder: Path, context: int, **options: Any) -> None:
        request = {"session": str(ROOT / "web" / "sessions" / "cpu.js"), "base": str(site())}
        self._folder = tempfile.TemporaryDirectory()
        question = Path(self._folder.name, "request.json")
        question.write_text(json.dumps(request | {"live": case(folder, [], **options)}))
        pipe = subprocess.PIPE
        self._node = subprocess.Popen(["node", str(RUNNER), str(question)], stdin=pipe, stdout=pipe, text=True)
        self._rewind: int | None = None
        self._adapter: str | None = None
        self.context, self.chunk, self.length, self.steps = context, 128, 0, 0

    async def step(self, ids: Sequence[int], positions: int = 1) -> list[Candidates]:
        assert self._node.stdin and self._node.stdout
        message = {"ids": list(ids), "positions": positions}
        message |= {} if self._rewind is None else {"rewind": self._rewind}
        message |= {} if self._adapter is None else {"adapter": self._adapter}
        print(json.dumps(message), file=self._node.stdin, flush=True)
        answer = json.loads(self._node.stdout.readline())
        self._rewind = self._adapter = None
        self.length += len(ids)
        self.steps += 1
        each = len(answer["ids"]) // positions
        return [
            Candidates(answer["ids"][first : first + each], answer["logits"][first : first + each])
            for first in range(0, len(answer["ids"]), each)
        ]

    async def adapter(self, name: str) -> None:
        self._adapter, self._rewind, self.length = name, None, 0

    def rewind(self, length: int) -> None:
        self.length = self._rewind = length

    def close(self) -> None:
        self._node.communicate()
        self._folder.cleanup()


def _answer(step: dict[str, Any], line: dict[str, Any]) -> Answer:
    positions = step.get("positions", 1)
    floats = [np.frombuffer(base64.b64decode(text), np.float32) for text in line["all"]]
    return Answer(
        np.frombuffer(base64.b64decode(line["ids"]), np.int32).reshape(positions, -1),
        np.frombuffer(base64.b64decode(line["logits"]), np.float32).reshape(positions, -1),
        np.stack(floats) if floats else np.zeros((0, 0), np.float32),
        line["seconds"],
        line.get("restored"),
    )
