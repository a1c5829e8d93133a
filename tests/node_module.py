"""Functions of a JavaScript module, asked from Python: one Node process, a JSON line in and a JSON line out."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class NodeModule:
    """``ask(name, *values)`` calls an exported function; what it returns comes back."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, name: str, *values: Any) -> Any:
        question, answer = self._process.stdin, self._process.stdout
        assert question and answer
        question.write(json.dumps([name, *values]) + "\n")
        question.flush()
        return json.loads(answer.readline())


@contextlib.contextmanager
def loaded(module: Path) -> Iterator[NodeModule]:
    """The module at ``module`` for the length of a ``with`` block."""
    code = f"""
        const module = await import({json.dumps(module.as_uri())});
        const lines = (await import("node:readline")).createInterface({{ input: process.stdin }});
        for await (const line of lines) {{
            const [name, ...values] = JSON.parse(line);
            console.log(JSON.stringify(await module[name](...values)));
        }}"""
    command = ["node", "--input-type=module", "-e", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield NodeModule(process)
