"""Clients that serve.py must outlive: slow, silent, many, with huge heads, or pages of other sites."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from pathlib import Path

import pytest

import serve
from local_server import PAGE, ask, raw, running


def test_a_silent_client_is_let_go(server: serve.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert serve.Handler.timeout == serve.TIMEOUT
    monkeypatch.setattr(serve.Handler, "timeout", 0.05)
    with socket.create_connection(server.server_address, timeout=10) as connection:
        connection.sendall(b"GET / HTT")
        assert connection.recv(100) == b""


def test_a_client_that_drips_is_let_go(server: serve.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, the head never ends."""
    monkeypatch.setattr(serve.Handler, "timeout", 0.3)
    sent = 0
    with socket.create_connection(server.server_address, timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        connection.settimeout(0.02)
        while sent < 500:
            try:
                connection.sendall(b"x")
                if connection.recv(100) == b"":
                    break
            except TimeoutError:
                sent += 1
            except ConnectionError:
                break
    assert sent < 500
    assert ask(server, "/").status == 200


def test_a_crowd_is_turned_away_and_room_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MOST_CLIENTS", 2)
    with serve.Server(folder, 0) as small:
        thread = threading.Thread(target=small.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        idle = [socket.create_connection(small.server_address, timeout=10) for _ in range(2)]
        with socket.create_connection(small.server_address, timeout=10) as third:
            assert third.recv(100) == b""
        for connection in idle:
            host = f"127.0.0.1:{small.server_address[1]}"
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            with connection.makefile("rb") as answer:
                assert answer.read().endswith(PAGE)
            connection.close()
        while True:  # The threads end a moment after the answers.
            try:
                assert ask(small, "/").status == 200
                break
            except (ConnectionError, http.client.HTTPException):
                continue
        small.shutdown()
        thread.join()


def test_a_client_that_never_reads_holds_nobody_up_and_is_let_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the buffers between the two take: the server waits for it, in a thread and with the file open."""
    monkeypatch.setattr(serve, "MOST_CLIENTS", 2)
    monkeypatch.setattr(serve.Handler, "timeout", 1)
    with (folder / "large.bin").open("wb") as large:
        large.truncate(64 << 20)

    def is_open() -> bool:
        return any(link.resolve() == folder / "large.bin" for link in Path("/proc/self/fd").iterdir())

    with running(folder) as small:
        threads = threading.active_count()
        with socket.create_connection(small.server_address, timeout=10) as deaf:
            deaf.sendall(f"GET /large.bin HTTP/1.1\r\nHost: 127.0.0.1:{small.server_address[1]}\r\n\r\n".encode())
            while not is_open():
                time.sleep(0.01)
            assert ask(small, "/").status == 200
            assert is_open(), "it waits meanwhile"
            while is_open() or threading.active_count() > threads:
                time.sleep(0.01)
            for _ in range(5):  # Its seat is free again.
                assert ask(small, "/").status == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n", b"431"),
    ],
)
def test_huge_heads_are_refused(server: serve.Server, head: bytes, status: bytes) -> None:
    assert raw(server, head).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://evil.example:80"])
def test_a_page_of_another_site_is_refused(server: serve.Server, origin: str) -> None:
    reply = ask(server, "/", Origin=origin)
    assert reply.status == 403
    assert PAGE not in reply.body
    port = server.server_address[1]
    assert ask(server, "/", Origin=f"http://localhost:{port}").status == 200
    two = f"GET / HTTP/1.1\r\nHost: localhost:{port}\r\nOrigin: http://localhost:{port}\r\nOrigin: {origin}\r\n"
    assert raw(server, f"{two}Connection: close\r\n\r\n".encode()).startswith(b"HTTP/1.1 403 ")
