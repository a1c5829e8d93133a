"""Serve dist/ on 127.0.0.1, as a good static host would.

Cross-origin isolation (threads need it), MIME types, byte ranges, precompressed copies and conditional requests, on
the standard library's threading HTTP server. Any other static server may serve dist/ too; the page then only lacks
what that server's headers do not allow. One file without dependencies, so that a copy of it beside dist/ on a stick is
enough on any machine that has Python 3.8 or newer.
"""

from __future__ import annotations

import argparse
import email.utils
import errno
import http.server
import io
import os
import re
import socket
import sys
import threading
import time
import urllib.parse
import webbrowser
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

HOST = "127.0.0.1"
PORT = 8000
PORTS_TRIED = 20
TIMEOUT = 30
"""Seconds a client may take for a request's head, or for a piece of a download, before its thread is freed."""

MOST_CLIENTS = 128
"""Connections at a time, a thread each. A browser opens six."""

PIECE = 1 << 18

MIME_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".wasm": "application/wasm",
    ".py": "text/x-python; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".zip": "application/zip",
    ".whl": "application/zip",
}
"""Written out, because ``mimetypes`` reads the machine's own tables and so answers differently from machine to machine.
Everything else (.onnx, .bin) is application/octet-stream."""

POLICY = (
    "default-src 'none'; "
    "script-src 'self' 'unsafe-eval' 'wasm-unsafe-eval' blob:; "
    "worker-src 'self' blob:; "
    "connect-src 'self' blob:; "
    "style-src 'self'; "
    "img-src 'self'; "
    "base-uri 'none'; "
    "form-action 'none'"
)
"""Index.html's Content-Security-Policy, for scripts: a worker obeys the header that it came with, and only that."""

HEADERS = {
    # Cross-origin isolation: without it there is no SharedArrayBuffer and so no second thread.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept, but asked about each time: a site assembled anew shows at once, and what is unchanged costs a 304.
    "Cache-Control": "no-cache",
}

ENCODINGS = {"br": ".br", "gzip": ".gz"}
"""Content-Encoding to the suffix of the precompressed copy, best first."""

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class RangeError(Exception):
    """A byte range that lies outside the file."""


@dataclass(frozen=True)
class Answer:
    """A file to send: the open file, its size, its entity tag and Content-Encoding ("" for none)."""

    file: BinaryIO
    size: int
    modified: float
    tag: str
    encoding: str


def locate(root: Path, target: str) -> Path | None:
    """The file inside ``root`` that a request target names, or None if there is none to give.

    ``root`` must be resolved. The target is percent-decoded once; what then has a NUL, a backslash, an empty or dotted
    segment (``..``, ``.git``), or leads through a link to outside of ``root``, is not given. ``/`` is ``index.html``.
    """
    try:
        decoded = urllib.parse.unquote(urllib.parse.urlsplit(target).path, errors="strict")
    except ValueError:  # bytes that are not UTF-8, or a malformed address
        return None
    if not decoded.startswith("/") or "\0" in decoded or "\\" in decoded:
        return None
    segments = decoded[1:].split("/")
    if segments[-1] == "":
        segments[-1] = "index.html"
    if any(segment == "" or segment.startswith(".") for segment in segments):
        return None
    try:
        path = root.joinpath(*segments).resolve(strict=True)
    except (OSError, RuntimeError):  # missing, a name too long for the file system, a loop of links
        return None
    return path if root in path.parents and path.is_file() else None


def accepted(header: str) -> set[str]:
    """The codings that an Accept-Encoding header allows (those with q=0 left out)."""
    allowed = set()
    for item in header.split(","):
        name, _, parameters = item.partition(";")
        if not re.fullmatch(r"q=0(\.0*)?", parameters.strip()):
            allowed.add(name.strip().lower())
    return allowed


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte (inclusive) that a Range header asks of ``size`` bytes; None to send the whole file.

    A header that is not one plain byte range is ignored, as RFC 9110 section 14.2 allows; a range that starts past the
    end, or runs backwards, raises RangeError.
    """
    match = _RANGE.fullmatch(header.strip())
    if not match or match.group(1) == match.group(2) == "":
        return None
    if match.group(1) == "":  # the last n bytes
        wanted = int(match.group(2))
        if wanted == 0 or size == 0:
            raise RangeError
        return max(size - wanted, 0), size - 1
    first = int(match.group(1))
    last = min(int(match.group(2)), size - 1) if match.group(2) else size - 1
    if first >= size or first > last:
        raise RangeError
    return first, last


class PatientReader(io.RawIOBase):
    """What a client sends, until ``deadline`` (``time.monotonic``): a byte now and then keeps no thread for ever.

    Raises TimeoutError past it.
    """

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self.deadline = time.monotonic() + seconds

    def renew(self) -> None:
        """Begin to wait anew."""
        self.deadline = time.monotonic() + self._seconds

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the beginning of ``buffer``; how many bytes, 0 at the end."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(self._seconds)


class Handler(http.server.BaseHTTPRequestHandler):
    """GET and HEAD of the files under the server's root; everything else is refused."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "handbill"
    sys_version = ""
    timeout = TIMEOUT

    def setup(self) -> None:
        """Read with a deadline for the whole head of a request."""
        super().setup()
        self._reader = PatientReader(self.connection, self.timeout)
        self.rfile = io.BufferedReader(self._reader)

    def handle_one_request(self) -> None:
        """Answer one request of a connection that may bring more."""
        self._reader.renew()
        super().handle_one_request()

    def do_GET(self) -> None:
        """Send a file, whole or one range of it."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Send what GET would, without the body."""
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body that nobody reads must not be taken for the next request
        if not self._host_is_ours():
            # A page of another site can point its own name at 127.0.0.1 (DNS rebinding); it cannot choose this header.
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "This server answers only to the address that it printed.")
            return
        if not self._origin_is_ours():
            # A page of another site asks. It could not read the answer, and has no business here.
            self._refuse(HTTPStatus.FORBIDDEN, "This server does not answer to pages of other sites.")
            return
        path = locate(self.server.root, self.path)
        if path is None:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such file in dist/.")
            return
        try:
            answer = self._open(path)
        except OSError:  # taken away, or not readable, since it was looked up
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such file in dist/.")
            return
        with answer.file:
            self._send(path, answer, body)

    def _host_is_ours(self) -> bool:
        """Whether the Host header names this server. Exactly one must be there (RFC 9112 section 3.2)."""
        hosts = self.headers.get_all("Host", [])
        return len(hosts) == 1 and hosts[0].strip().lower() in self.server.names

    def _origin_is_ours(self) -> bool:
        """Whether the page that asks is of this site. A browser names it in every request from another site's code."""
        origins = {origin.strip().lower() for origin in self.headers.get_all("Origin", [])}
        return origins <= {f"http://{name}" for name in self.server.names}

    def _open(self, path: Path) -> Answer:
        """Open ``path``, or its precompressed copy where the client takes one and wants no range (ranges count bytes
        of the file itself, which is what a resumed download needs)."""
        allowed = accepted(self.headers.get("Accept-Encoding", ""))
        if "Range" not in self.headers:
            for encoding, suffix in ENCODINGS.items():
                copy = path.with_name(path.name + suffix)
                if encoding in allowed and copy.is_file() and not copy.is_symlink():
                    return _opened(copy, encoding)
        return _opened(path, "")

    def _send(self, path: Path, answer: Answer, body: bool) -> None:
        common = {"ETag": answer.tag, "Vary": "Accept-Encoding", "Accept-Ranges": "bytes"}
        if self.path.endswith("/service.js?apart"):  # A kiosk's: start.js says why.
            common["Cross-Origin-Embedder-Policy"] = "unsafe-none"
        if path.suffix in (".js", ".mjs"):
            common["Content-Security-Policy"] = POLICY
        if self._unchanged(answer):
            self._head(HTTPStatus.NOT_MODIFIED, common)
            return
        status, first, last = HTTPStatus.OK, 0, answer.size - 1
        # If-Range: the range only counts while the file is still the one that the client has the beginning of.
        if "Range" in self.headers and self.headers.get("If-Range", answer.tag) == answer.tag:
            try:
                asked = byte_range(self.headers["Range"], answer.size)
            except RangeError:
                sentence = f"The file has {answer.size} bytes; the range lies outside of it."
                self._refuse(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, sentence, {"Content-Range": f"bytes */{answer.size}"}
                )
                return
            if asked:
                status, (first, last) = HTTPStatus.PARTIAL_CONTENT, asked
                common["Content-Range"] = f"bytes {first}-{last}/{answer.size}"
        common["Content-Type"] = MIME_TYPES.get(path.suffix, "application/octet-stream")
        common["Content-Length"] = str(last - first + 1)
        common["Last-Modified"] = email.utils.formatdate(answer.modified, usegmt=True)
        if answer.encoding:
            common["Content-Encoding"] = answer.encoding
        self._head(status, common)
        if body:
            self._copy(answer.file, first, last - first + 1)

    def _unchanged(self, answer: Answer) -> bool:
        """Whether the client already holds this very file."""
        tags = [tag.strip() for tag in self.headers.get("If-None-Match", "").split(",")]
        return not {answer.tag, f"W/{answer.tag}", "*"}.isdisjoint(tags)

    def _copy(self, file: BinaryIO, first: int, left: int) -> None:
        file.seek(first)
        while left > 0:
            piece = file.read(min(PIECE, left))
            if not piece:  # cut short under our hands: the length promised cannot be kept, so the connection ends
                self.close_connection = True
                return
            self.wfile.write(piece)
            left -= len(piece)

    def _head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _refuse(self, status: HTTPStatus, sentence: str, extra: dict[str, str] | None = None) -> None:
        body = f"{sentence}\n".encode()
        headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), **(extra or {})}
        self._head(status, headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of requests that went well; http.server's own errors reach send_error instead."""


def _opened(path: Path, encoding: str) -> Answer:
    """Open ``path`` and take size and tag from the open file, so that a site renamed over it cannot mix the two."""
    file = path.open("rb")
    stat = os.fstat(file.fileno())
    tag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}{"-" + encoding if encoding else ""}"'
    return Answer(file, stat.st_size, stat.st_mtime, tag, encoding)


class Server(http.server.ThreadingHTTPServer):
    """One thread a connection, over the files of ``root``."""

    daemon_threads = True

    def __init__(self, root: Path, port: int) -> None:
        self.root = root.resolve(strict=True)
        self._seats = threading.BoundedSemaphore(MOST_CLIENTS)
        super().__init__((HOST, port), Handler)

    @property
    def names(self) -> set[str]:
        """What a Host header may call this server."""
        port = self.server_address[1]
        return {f"{HOST}:{port}", f"localhost:{port}"}

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread; hang up if all are taken."""
        if self._seats.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve the connection in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._seats.release()

    @property
    def address(self) -> str:
        """The address to open in a browser."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away or fell silent is no error of ours; anything else is shown as it is."""
        # Before Python 3.10, which has one class for both, a socket's timeout is no TimeoutError.
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError, socket.timeout)):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def listen(root: Path, port: int) -> Server:
    """A server on ``port``, or on the next free one above it.

    Raises OSError if none of ``PORTS_TRIED`` ports can be had.
    """
    for candidate in range(port, port + PORTS_TRIED):
        try:
            return Server(root, candidate)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"the ports {port} to {port + PORTS_TRIED - 1} are all taken; name one with --port")


def main() -> int:
    """The command ``python serve.py [--port N] [--dir dist] [--open]``."""
    parser = argparse.ArgumentParser(description="Serve the assembled site on this machine only.")
    parser.add_argument("--port", type=int, default=PORT, help=f"first port to try (default {PORT})")
    parser.add_argument("--dir", type=Path, default=Path(__file__).resolve().parent / "dist", help="default: dist/")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    arguments = parser.parse_args()
    if not (arguments.dir / "index.html").is_file():
        print(f"serve: {arguments.dir} holds no site. Make it with: python build/assemble.py", file=sys.stderr)
        return 1
    try:
        server = listen(arguments.dir, arguments.port)
    except (OSError, OverflowError) as error:
        print(f"serve: cannot listen on {HOST}: {error}", file=sys.stderr)
        return 1
    with server:
        try:
            if arguments.port not in (0, server.server_address[1]):
                print(f"serve: port {arguments.port} is taken, so another one was chosen.")
            print(f"Handbill is at {server.address} (Ctrl-C ends it)", flush=True)
            if arguments.open:
                webbrowser.open(server.address)
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
