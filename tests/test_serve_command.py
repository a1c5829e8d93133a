"""The command python serve.py: ports, sentences, Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import serve


def test_the_next_port_is_taken(folder: Path) -> None:
    with serve.listen(folder, 0) as first, serve.listen(folder, first.server_address[1]) as second:
        assert second.server_address[1] > first.server_address[1]


def test_no_port_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "PORTS_TRIED", 1)
    with serve.listen(folder, 0) as first, pytest.raises(OSError, match="taken; name one with --port"):
        serve.listen(folder, first.server_address[1])


def start(*arguments: str) -> subprocess.Popen[str]:
    """serve.py as a person starts it."""
    command = [sys.executable, serve.__file__, *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that a shell runs in the background ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def pythons() -> list[str]:
    """One interpreter of each version of Python on this machine that serve.py runs on."""
    found = {}
    for minor in range(8, 20):
        for command in (f"python3.{minor}", *Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python")):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                subprocess.run([command, "-c", "import http.server"], check=True, capture_output=True)
                found.setdefault(minor, str(command))
    return list(found.values())


@pytest.mark.parametrize("python", pythons())
def test_every_python_that_is_promised_runs_all_of_it(folder: Path, tmp_path: Path, python: str) -> None:
    """Whatever a request goes through, and clients that fall silent or go away, with which threads of its own deal."""
    code = tmp_path / "client.py"
    code.write_text(CLIENT, encoding="utf-8")
    command = [python, str(code), str(Path(serve.__file__).parent), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    answers = json.loads(done.stdout)
    assert answers == [200, 304, 206, 416, 404, 404, 421, 403, "silent", 200, 200]


CLIENT = r"""
import http.client, json, pathlib, socket, struct, sys, threading
sys.path.insert(0, sys.argv[1])
import serve

serve.Handler.timeout = 0.3
server = serve.listen(pathlib.Path(sys.argv[2]), 0)
threading.Thread(target=server.serve_forever, daemon=True).start()
answers = []

def ask(target="/", **headers):
    connection = http.client.HTTPConnection(*server.server_address)
    connection.request("GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    answer.read()
    answers.append(answer.status)
    connection.close()
    return answer

tag = ask(Accept_Encoding="gzip;q=0, br").headers["ETag"]
ask(Accept_Encoding="br", If_None_Match="W/" + tag)
ask("/blob.bin", Range="bytes=5-9")
ask("/blob.bin", Range="bytes=999999-")
ask("/../secret.txt")
ask("/outer/secret.txt")
ask(Host="evil.example")
ask(Origin="http://evil.example")
with socket.create_connection(server.server_address) as silent:
    silent.sendall(b"GET / HTT")
    if silent.recv(100) == b"":
        answers.append("silent")
ask()
gone = socket.create_connection(server.server_address)
gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
gone.sendall(b"GET /blob.bin HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % server.server_address[1])
gone.close()
ask()
server.shutdown()
print(json.dumps(answers))
"""
"""Asks a server of a folder with traps for everything, and prints how it answered."""


def test_missing_dist_names_the_command(tmp_path: Path) -> None:
    with start("--dir", str(tmp_path / "dist")) as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err == f"serve: {tmp_path / 'dist'} holds no site. Make it with: python build/assemble.py\n"
    assert out == ""


def test_an_impossible_port_is_a_sentence(folder: Path) -> None:
    with start("--dir", str(folder), "--port", "70000") as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith("serve: cannot listen on 127.0.0.1: ")
    assert "Traceback" not in err


def test_a_taken_port_is_said_and_ctrl_c_ends_quietly(folder: Path) -> None:
    with serve.listen(folder, 0) as other:
        taken = other.server_address[1]
        with start("--dir", str(folder), "--port", str(taken)) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"serve: port {taken} is taken, so another one was chosen.\n"
            assert process.stdout.readline().startswith("Handbill is at http://127.0.0.1:")
            os.kill(process.pid, signal.SIGINT)
            _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
