"""serve.py against a small site of our own, over real sockets."""

from __future__ import annotations

import gzip
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import brotli
import pytest

import serve

BLOB = bytes(range(256)) * 8
PAGE = b"<!doctype html><title>t</title>" + b"x" * 2000
SERVE = Path(serve.__file__)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder dist/ with a page, blobs and traps, and a secret beside it."""
    (tmp_path / "secret.txt").write_text("secret")
    dist = tmp_path / "dist"
    (dist / "sub").mkdir(parents=True)
    (dist / "index.html").write_bytes(PAGE)
    (dist / "index.html.br").write_bytes(brotli.compress(PAGE))
    (dist / "index.html.gz").write_bytes(gzip.compress(PAGE))
    (dist / "blob.bin").write_bytes(BLOB)
    (dist / "empty.bin").write_bytes(b"")
    for name in ("a.mjs", "a.js", "a.wasm", "a.py", "a.whl", "a.onnx", "a.json", "a.css", "a.svg", "a.html"):
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


@pytest.fixture
def server(site: Path) -> Iterator[serve.Server]:
    """The server of ``site`` on a port of the system's choice."""
    with serve.Server(site, 0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
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


def test_the_page_with_its_isolation_headers(server: serve.Server) -> None:
    reply = ask(server, "/")
    assert (reply.status, reply.body) == (200, PAGE)
    assert reply.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert reply.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Cache-Control"] == "no-cache"
    assert ask(server, "/index.html?v=1").body == PAGE
    assert ask(server, "/two%20words%20%C3%A9.txt").body == b"spaced"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.mjs", "text/javascript; charset=utf-8"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.wasm", "application/wasm"),
        ("a.py", "text/x-python; charset=utf-8"),
        ("a.whl", "application/zip"),
        ("a.onnx", "application/octet-stream"),
        ("blob.bin", "application/octet-stream"),
        ("a.json", "application/json"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.svg", "image/svg+xml"),
        ("a.html", "text/html; charset=utf-8"),
    ],
)
def test_types_do_not_depend_on_the_machine(server: serve.Server, name: str, kind: str) -> None:
    assert ask(server, f"/{name}").headers["Content-Type"] == kind


@pytest.mark.parametrize(
    "target",
    [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e/secret.txt",
        "/%2E%2E%2Fsecret.txt",
        "/sub/../../secret.txt",
        "/sub/%2e%2e/%2e%2e/secret.txt",
        "/..%5csecret.txt",
        "/..\\secret.txt",
        "/%252e%252e/secret.txt",
        "/..%c0%afsecret.txt",
        "/%c0%ae%c0%ae/secret.txt",
        "/..%00/secret.txt",
        "/index.html%00.txt",
        "//../secret.txt",
        "/%2fetc/passwd",
        "//etc/passwd",
        "/.%2e/secret.txt",
        "..",
        "secret.txt",
        "/out.txt",
        "/outer/secret.txt",
        "/outer/dist/index.html.gz/..",
        "/loop",
        "/.hidden",
        "/.git/config",
        "/sub/.",
        "/sub",
        "/sub/",
        "/index.html/",
        "/index.html/x",
        "/" + "a" * 5000,
        "/" + "a/" * 5000,
        "http://[/x",
        "/absent.js",
    ],
)
def test_nothing_outside_the_site(server: serve.Server, target: str) -> None:
    request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{server.server_address[1]}\r\nConnection: close\r\n\r\n"
    said = raw(server, request.encode("latin-1"))
    assert said.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 "))
    assert b"secret\n" not in said
    assert not said.endswith(b"secret")
    assert b"root:" not in said


def test_a_link_that_stays_inside_is_followed(server: serve.Server) -> None:
    assert ask(server, "/inside.bin").body == BLOB


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1", "127.0.0.1:1", "[::1]:80", "0.0.0.0"]
)
def test_a_foreign_host_is_refused(server: serve.Server, host: str) -> None:
    reply = ask(server, "/", host=host)
    assert reply.status == 421
    assert PAGE not in reply.body


def test_localhost_is_ours_and_a_missing_or_second_host_is_not(server: serve.Server) -> None:
    port = server.server_address[1]
    assert ask(server, "/", host=f"LOCALHOST:{port}").status == 200
    assert raw(server, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421 ")
    twice = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert raw(server, twice.encode()).startswith(b"HTTP/1.1 421 ")


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=2000-", 2000, 2047),
        ("bytes=2047-9999", 2047, 2047),
        ("bytes=-5", 2043, 2047),
        ("bytes=-99999", 0, 2047),
    ],
)
def test_one_range(server: serve.Server, asked: str, first: int, last: int) -> None:
    reply = ask(server, "/blob.bin", Range=asked)
    assert reply.status == 206
    assert reply.body == BLOB[first : last + 1]
    assert reply.headers["Content-Range"] == f"bytes {first}-{last}/2048"


@pytest.mark.parametrize(
    "asked", ["bytes=2048-", "bytes=5000-6000", "bytes=9-3", "bytes=-0", "bytes=999999999999999999-"]
)
def test_a_range_outside_the_file_is_refused(server: serve.Server, asked: str) -> None:
    reply = ask(server, "/blob.bin", Range=asked)
    assert reply.status == 416
    assert reply.headers["Content-Range"] == "bytes */2048"
    assert ask(server, "/empty.bin", Range="bytes=0-").status == 416


@pytest.mark.parametrize("asked", ["bytes=-", "items=0-1", "bytes=a-b", "bytes=0-1,3-4", "bytes=0-" + "9" * 5000, "x"])
def test_a_range_of_another_kind_gets_the_whole_file(server: serve.Server, asked: str) -> None:
    reply = ask(server, "/blob.bin", Range=asked)
    assert (reply.status, reply.body) == (200, BLOB)


def test_a_resumed_download_of_a_changed_file_starts_again(server: serve.Server, site: Path) -> None:
    tag = ask(server, "/blob.bin").headers["ETag"]
    assert ask(server, "/blob.bin", Range="bytes=9-", If_Range=tag).status == 206
    (site / "blob.bin").write_bytes(b"new" * 100)
    assert ask(server, "/blob.bin", Range="bytes=9-", If_Range=tag).body == b"new" * 100


def test_precompressed_copies(server: serve.Server) -> None:
    best = ask(server, "/", Accept_Encoding="gzip, deflate, br")
    assert best.headers["Content-Encoding"] == "br"
    assert brotli.decompress(best.body) == PAGE
    assert best.headers["Content-Type"] == "text/html; charset=utf-8"
    assert best.headers["Vary"] == "Accept-Encoding"
    second = ask(server, "/", Accept_Encoding="GZIP;q=0.5, br;q=0")
    assert second.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(second.body) == PAGE
    plain = ask(server, "/", Accept_Encoding="identity")
    assert plain.body == PAGE
    assert "Content-Encoding" not in plain.headers
    assert len({best.headers["ETag"], second.headers["ETag"], plain.headers["ETag"]}) == 3
    part = ask(server, "/", Accept_Encoding="br", Range="bytes=0-4")
    assert (part.status, part.body) == (206, PAGE[:5])
    # A compressed copy that is a link to elsewhere is not sent in the file's place.
    assert ask(server, "/blob.bin", Accept_Encoding="gzip").body == BLOB


def test_unchanged_files_cost_no_body(server: serve.Server, site: Path) -> None:
    tag = ask(server, "/blob.bin").headers["ETag"]
    same = ask(server, "/blob.bin", If_None_Match=f'"other", W/{tag}')
    assert (same.status, same.body) == (304, b"")
    (site / "blob.bin").write_bytes(b"changed")
    assert ask(server, "/blob.bin", If_None_Match=tag).body == b"changed"


def test_head_has_the_headers_of_get_and_no_body(server: serve.Server) -> None:
    reply = ask(server, "/blob.bin", method="HEAD")
    assert (reply.status, reply.body, reply.headers["Content-Length"]) == (200, b"", "2048")
    host = f"Host: 127.0.0.1:{server.server_address[1]}\r\nConnection: close\r\n\r\n".encode()
    refused = raw(server, b"HEAD /absent HTTP/1.1\r\n" + host)
    assert refused.startswith(b"HTTP/1.1 404 ")
    assert refused.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(server: serve.Server, method: str) -> None:
    assert ask(server, "/", method=method).status == 501


def test_a_body_is_not_taken_for_the_next_request(server: serve.Server) -> None:
    host = f"Host: 127.0.0.1:{server.server_address[1]}\r\n".encode()
    inner = b"GET /a.js HTTP/1.1\r\n" + host + b"\r\n"
    said = raw(server, b"GET /a.css HTTP/1.1\r\n" + host + b"Content-Length: %d\r\n\r\n" % len(inner) + inner)
    assert said.count(b"HTTP/1.1 ") == 1


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


def test_a_crowd_is_turned_away_and_room_is_made_again(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MOST_CLIENTS", 2)
    with serve.Server(site, 0) as small:
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


def test_the_next_port_is_taken(site: Path) -> None:
    with serve.listen(site, 0) as first, serve.listen(site, first.server_address[1]) as second:
        assert second.server_address[1] > first.server_address[1]


def test_no_port_at_all(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "PORTS_TRIED", 1)
    with serve.listen(site, 0) as first, pytest.raises(OSError, match="taken; name one with --port"):
        serve.listen(site, first.server_address[1])


def start(*arguments: str) -> subprocess.Popen[str]:
    """serve.py as a person starts it."""
    command = [sys.executable, str(SERVE), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_missing_dist_names_the_command(tmp_path: Path) -> None:
    with start("--dir", str(tmp_path / "dist")) as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err == f"serve: {tmp_path / 'dist'} holds no site. Make it with: python build/assemble.py\n"
    assert out == ""


def test_an_impossible_port_is_a_sentence(site: Path) -> None:
    with start("--dir", str(site), "--port", "70000") as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith("serve: cannot listen on 127.0.0.1: ")
    assert "Traceback" not in err


def test_a_taken_port_is_said_and_ctrl_c_ends_quietly(site: Path) -> None:
    with serve.listen(site, 0) as other:
        taken = other.server_address[1]
        with start("--dir", str(site), "--port", str(taken)) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"serve: port {taken} is taken, so another one was chosen.\n"
            assert process.stdout.readline().startswith("Handbill is at http://127.0.0.1:")
            os.kill(process.pid, signal.SIGINT)
            _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
