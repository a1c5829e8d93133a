"""Memory of the tabs and of the GPU process of this process' browser, from the kernel's own books (/proc)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

OWN = ("Pss_Anon", "Pss_Shmem")


def own_megabytes(kind: bytes = b"--type=renderer") -> float:
    """Megabytes of all open tabs that are there because of them: heaps, WebAssembly, canvases and messages.

    Or those of the processes of another ``kind``.

    Anonymous and shared memory (PSS), not mapped files: the same Chromium may run elsewhere on the machine, and a
    file's share then changes with neighbours that come and go, by tens of megabytes. The renderers of the browser's
    own surface are left out.
    """
    total = 0
    for folder in _processes(kind):
        try:
            rollup = (folder / "smaps_rollup").read_text(encoding="ascii")
        except (FileNotFoundError, ProcessLookupError):
            continue  # It ended between the listing and the look.
        fields = dict(line.split(":", 1) for line in rollup.splitlines()[1:])
        total += sum(int(fields[name].split()[0]) for name in OWN) * 1024
    return total / 1e6


def _processes(kind: bytes) -> Iterator[Path]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if kind not in command or b"--top-chrome-webui" in command:
                continue
            if _descends(int(folder.name), os.getpid()):
                yield folder
        except (FileNotFoundError, ProcessLookupError):
            continue


def _descends(child: int, ancestor: int) -> bool:
    while child > 1:
        if child == ancestor:
            return True
        child = int((Path("/proc") / str(child) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return False
