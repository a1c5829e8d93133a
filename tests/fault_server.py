"""serve.py's server for the tests of the page, which notes what is asked of it and does wrong what it is told to."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import serve


@dataclass(frozen=True)
class Drop:
    """The connection ends after so many bytes of the body."""

    after: int


@dataclass(frozen=True)
class Stall:
    """After so many bytes of the body nothing more comes, and the connection stays."""

    after: int


@dataclass(frozen=True)
class Corrupt:
    """One bit of the file's byte ``at`` is another; of the middle of what is sent if it lies elsewhere."""

    at: int = -1


@dataclass(frozen=True)
class Refuse:
    """An answer of that status instead of the file."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Whole:
    """The Range header is not looked at, and the connection may end after so many bytes, as with Drop."""

    after: int | None = None


@dataclass(frozen=True)
class Claim:
    """Content-Length is another than what is sent: a browser takes no more, or misses the rest."""

    length: int


@dataclass(frozen=True)
class Gzip:
    """The host compresses the file, and ranges are those of the compressed bytes."""


Fault = Drop | Stall | Corrupt | Refuse | Whole | Claim | Gzip


@dataclass
class Mischief:
    """What the server does wrong, and what it was asked for.

    The first answers with a body for a file name each take the next of ``faults[name]``, None for none;
    ``isolated`` False leaves out COOP, COEP and the content security policy. ``asked`` notes (name, Range header) of
    every answer with a body or a refusal of ours, ``sent`` counts the bytes of bodies by name.
    """

    faults: dict[str, list[Fault | None]] = field(default_factory=dict)
    isolated: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    """Method and target of every request, also of those for other hosts where the server is a browser's proxy."""

    over: threading.Event = field(default_factory=threading.Event)
    """Set when the server ends: what stalls lets go."""

    def of(self, *names: str) -> list[tuple[str, str | None]]:
        """What was asked for of these files alone."""
        return [one for one in self.asked if one[0] in names]


class Handler(serve.Handler):
    """serve.py's handler with some mischief."""

    mischief: Mischief
    connections: set[socket.socket]
    fault: Fault | None = None

    def setup(self) -> None:
        super().setup()
        self.connections.add(self.connection)

    def finish(self) -> None:
        self.connections.discard(self.connection)
        super().finish()

    @property
    def name(self) -> str:
        """The name of the file that is asked for."""
        return self.path.rpartition("/")[2]

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed:
            self.mischief.log.append(f"{self.command} {self.path}")
        return parsed

    def _host_is_ours(self) -> bool:
        return True

    def _origin_is_ours(self) -> bool:
        return True

    def _send(self, path: Path, answer: serve.Answer, body: bool) -> None:
        faults = self.mischief.faults.get(self.name)
        self.fault = faults.pop(0) if faults and body else None
        match self.fault:
            case Refuse(status, headers):
                self.mischief.asked.append((self.name, self.headers.get("Range")))
                self._refuse(HTTPStatus(status), "No.", headers)
                return
            case Whole(_):
                self.mischief.asked.append((self.name, self.headers.get("Range")))
                del self.headers["Range"]
            case Gzip():
                packed = gzip.compress(path.read_bytes(), 1)
                answer = dataclasses.replace(answer, file=io.BytesIO(packed), size=len(packed), encoding="gzip")
        super()._send(path, answer, body)

    def _head(self, status: Any, headers: dict[str, str]) -> None:
        served = status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT) and self.command == "GET"
        if served and not isinstance(self.fault, Whole):  # Before the answer: to its head alone a browser may say no.
            self.mischief.asked.append((self.name, self.headers.get("Range")))
        if isinstance(self.fault, Claim):
            headers = {**headers, "Content-Length": str(self.fault.length)}
            self.close_connection = True
        self.send_response(status)
        for name, value in {**serve.HEADERS, **headers}.items():
            if self.mischief.isolated or not name.startswith(("Cross-Origin", "Content-Security")):
                self.send_header(name, value)
        self.end_headers()

    def _copy(self, file: Any, first: int, left: int) -> None:
        match self.fault:
            case Corrupt(at):
                file.seek(first)
                data = bytearray(file.read(left))
                data[at - first if first <= at < first + left else left // 2] ^= 1
                super()._copy(io.BytesIO(bytes(first) + data), first, left)
            case Drop(int(after)) | Stall(int(after)) | Whole(int(after)):
                left = min(after, left)
                super()._copy(file, first, left)
                self.wfile.flush()
                if isinstance(self.fault, Stall):
                    self.mischief.sent[self.name] += left
                    self.mischief.over.wait()
                    left = 0
                else:
                    time.sleep(0.5)  # Bytes that a browser has not handed on when a connection breaks are lost to it.
                self.close_connection = True
            case Claim(length):
                left = min(left, length)
                super()._copy(file, first, left)
            case _:
                super()._copy(file, first, left)
        self.mischief.sent[self.name] += left


@contextlib.contextmanager
def serving(dist: Path, mischief: Mischief | None = None, port: int = 0) -> Iterator[str]:
    """Serve ``dist`` on ``port`` (0: a free one) for the length of a ``with`` block; its address, ending in a slash."""
    mischief = mischief or Mischief()
    connections: set[socket.socket] = set()
    handler = type("Mischievous", (Handler,), {"mischief": mischief, "connections": connections})
    server = serve.Server(dist, port)
    server.RequestHandlerClass = handler
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.address
    finally:
        server.shutdown()
        for connection in list(connections):  # Those that a browser keeps open would still be answered.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        mischief.over.set()  # Not before: whoever was let go asks again at once.
        server.server_close()
        thread.join()
