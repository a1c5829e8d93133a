"""What an interrupted export had finished: each stage leaves a folder and a line in a record, and runs but once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from exporter.errors import ExportError

RECORD = "stages.json"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the stages' ``folder`` until the block ends or the process does. Raises ExportError while another has it."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ExportError(
            f"Another export is writing into {folder}: wait for its end, or use --output to write elsewhere."
        ) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # filelock leaves it; what opened it meanwhile tries again
        lock.release()


class Stages:
    """The stages of one export in ``folder``, which outlives the process.

    A stage that is in the record is whole; what else lies in the folder was being made when the process ended, and is
    thrown away. ``key`` says what is exported and by what: a folder of another key is emptied.
    """

    def __init__(self, folder: Path, key: Any) -> None:
        self.folder = folder
        self.key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        record = folder / RECORD
        found = json.loads(record.read_text("utf-8")) if record.is_file() else {}
        self.done: dict[str, Any] = found["done"] if found.get("key") == self.key else {}
        if not all((folder / name).is_dir() for name in self.done):
            self.done = {}
        if not self.done:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, work: Callable[[Path], Any]) -> Any:
        """The result of ``work(folder/name)``, which JSON can hold: from the record if it ran to its end before."""
        folder = self.folder / name
        if name not in self.done:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                result = work(folder)
            except ExportError:  # it would end so again
                shutil.rmtree(self.folder)
                raise
            self.done[name] = result
            self._write()
        else:
            print(f"{name.capitalize()} before, by a run that was stopped.", flush=True)
        return self.done[name]

    def _write(self) -> None:
        partial = self.folder / f"{RECORD}.partial"
        partial.write_text(json.dumps({"key": self.key, "done": self.done}), "utf-8")
        partial.replace(self.folder / RECORD)
