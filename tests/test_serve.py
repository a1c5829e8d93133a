"""What serve.py gives: its files, headers, ranges and copies, and nothing outside the site."""

from __future__ import annotations

import gzip
from pathlib import Path

import brotli
import pytest

import serve
from local_server import BLOB, PAGE, ask, raw


def test_the_page_with_its_isolation_headers(server: serve.Server) -> None:
    reply = ask(server, "/")
    assert (reply.status, reply.body) == (200, PAGE)
    assert reply.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert reply.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    apart = ask(server, "/service.js?apart").headers
    assert (apart["Cross-Origin-Embedder-Policy"], apart["Cross-Origin-Opener-Policy"]) == (
        "unsafe-none",
        "same-origin",
    )
    assert ask(server, "/service.js").headers["Cross-Origin-Embedder-Policy"] == "require-corp"
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


def test_a_resumed_download_of_a_changed_file_starts_again(server: serve.Server, folder: Path) -> None:
    tag = ask(server, "/blob.bin").headers["ETag"]
    assert ask(server, "/blob.bin", Range="bytes=9-", If_Range=tag).status == 206
    (folder / "blob.bin").write_bytes(b"new" * 100)
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


def test_unchanged_files_cost_no_body(server: serve.Server, folder: Path) -> None:
    tag = ask(server, "/blob.bin").headers["ETag"]
    same = ask(server, "/blob.bin", If_None_Match=f'"other", W/{tag}')
    assert (same.status, same.body) == (304, b"")
    (folder / "blob.bin").write_bytes(b"changed")
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
