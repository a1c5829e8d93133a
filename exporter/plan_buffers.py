"""Which of a plan's values may lie in the same buffer, one after the other."""

from __future__ import annotations

from typing import Any

Op = dict[str, Any]


def reuse_buffers(ops: list[Op], buffers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rewrites the operands of ``ops`` so that a buffer serves again once its value is not read any more."""
    names = ("x", "skip", "sum", "y", "a", "b", "q", "k", "v")
    written = ("y", "sum")
    last: dict[int, int] = {}
    for index, op in enumerate(ops):
        for name in names:
            if isinstance(op.get(name), list):
                last[op[name][0]] = index
    real: list[dict[str, Any]] = []
    free: list[int] = []
    place: dict[int, int] = {}
    for index, op in enumerate(ops):
        operands = [name for name in names if isinstance(op.get(name), list)]
        virtual = {op[name][0] for name in operands}
        for name in operands:
            number = op[name][0]
            if name in written and number not in place:
                fitting = [i for i in free if real[i] == buffers[number]]
                if fitting:
                    free.remove(fitting[0])
                    place[number] = fitting[0]
                else:
                    real.append(dict(buffers[number]))
                    place[number] = len(real) - 1
        for name in operands:
            op[name] = [place[op[name][0]], op[name][1]]
        free += [place[number] for number in virtual if last[number] == index]
    return real
