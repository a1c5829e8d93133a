"""serve.py over a small site with traps, and requests sent exactly as written."""

from __future__ import annotations

import gzip
import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import brotli

import serve

BLOB = bytes(range(256)) * 8
PAGE = b"<!doctype html><title>t</title>" + b"x" * 2000


def traps(tmp_path: Path) -> Path:
    """A folder dist/ with a page, blobs and traps, and a secret beside it."""
    (tmp_path / "secret.txt").write_text("secret")
    dist = tmp_path / "dist"
    (dist / "sub").mkdir(parents=True)
    (dist / "index.html").write_bytes(PAGE)
    (dist / "index.html.br").write_bytes(brotli.compress(PAGE))
    (dist / "index.html.gz").write_bytes(gzip.compress(PAGE))
    (dist / "blob.bin").write_bytes(BLOB)
    (dist / "empty.bin").write_bytes(b"")
    for name in (
        "a.mjs",
        "a.js",
        "a.wasm",
        "a.py",
        "a.whl",
        "a.onnx",
        "a.json",
        "a.css",
        "a.svg",
        "a.html",
        "service.js",
    ):
        (dist / name).write_bytes(b"1234")
    (dist / "two words é.txt").write_text("spaced")
    (dist / ".hidden").write_text("secret")
    (dist / ".git").mkdir()
    (dist / ".git" / "config").write_text("secret")
    (dist / "out.txt").symlink_to(tmp_path / "secret.txt")
    (dist / "outer").symlink_to(tmp_path)
    (dist / "loop").symlink_to(dist / "loop")
    (dist / "inside.bin").symlink_to(dist / "blob.bin")
    (dist / "blob.bin.gz").symlink_to(tmp_path / "secret.txt")
    return dist


@contextmanager
def running(folder: Path) -> Iterator[serve.Server]:
    """The server of ``folder`` on a port of the system's choice."""
    with serve.Server(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Reply:
    """What came back: status, headers and the body's bytes."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()


def ask(server: serve.Server, target: str, method: str = "GET", host: str | None = None, **headers: str) -> Reply:
    """One request, with ``target`` sent exactly as written."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    try:
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host or f"127.0.0.1:{server.server_address[1]}")
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        return Reply(connection.getresponse())
    finally:
        connection.close()


def raw(server: serve.Server, request: bytes) -> bytes:
    """Everything the server says to these bytes until it closes the connection."""
    with socket.create_connection(server.server_address, timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        said = b""
        while piece := connection.recv(65536):
            said += piece
        return said
