"""kiosk.toml: what build/dress.py reads, refuses and writes into the page."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import dress
from dress import Kiosk, KioskError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "web" / "index.html").read_text(encoding="utf-8")
ATTRACT = (ROOT / "web" / "templates" / "attract.html").read_text(encoding="utf-8")
LEAST = 'title = "A"\ngreeting = "B"\n'


def read(folder: Path, text: str) -> Kiosk:
    path = folder / "kiosk.toml"
    path.write_text(text, encoding="utf-8")
    return Kiosk.read(path, {"en", "de"})


def test_the_example_has_every_key_and_is_good() -> None:
    path = ROOT / "docs" / "kiosk.toml"
    kiosk = Kiosk.read(path, {"en", "de"})
    assert kiosk.idle_seconds == 60
    assert kiosk.controls == ["new-chat", "again"]
    written = set(re.findall(r"^(\w+) =", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert written == {entry.name for entry in dataclasses.fields(Kiosk)}


def test_title_and_greeting_are_enough(tmp_path: Path) -> None:
    kiosk = read(tmp_path, LEAST)
    assert (kiosk.title, kiosk.greeting, kiosk.questions, kiosk.controls) == ("A", "B", [], ["new-chat"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('title = "A"', "the key 'greeting' is missing"),
        (LEAST + "idle = 3", "there is no key 'idle'"),
        (LEAST + "idle_seconds = 9", "idle_seconds is 9; it may be 10 to 3600"),
        (LEAST + "idle_seconds = true", "idle_seconds should be a whole number, not True"),
        (LEAST + "idle_seconds = 60.5", "idle_seconds should be a whole number, not 60.5"),
        (LEAST + 'answer_tokens = "many"', "answer_tokens should be a whole number"),
        (LEAST + "answer_tokens = 1000000", "answer_tokens is 1000000; it may be 8 to 4096"),
        (LEAST + "questions = [3]", "questions should be a list of texts"),
        (LEAST + 'questions = "one"', "questions should be a list of texts"),
        (LEAST + f"questions = {['?'] * 7}", "there are 7 questions; the screen has room for 6"),
        (LEAST + f'questions = ["{"x" * 121}"]', "questions has a text of 121 characters; 120 fit"),
        (LEAST + 'questions = [" "]', "questions has an empty text"),
        (LEAST + 'theme = "pink"', "theme has 'pink'; known are 'auto', 'light', 'dark'"),
        (LEAST + 'language = "tlh"', "language has 'tlh'; known are '', 'de', 'en'"),
        (LEAST + 'controls = ["print"]', "controls has 'print'"),
        ('title = "A\\u0000"\ngreeting = "B"', "title has a control character"),
        ('title = ""\ngreeting = "B"', "title has an empty text"),
        (f'title = "{"x" * 61}"\ngreeting = "B"', "title has a text of 61 characters; 60 fit"),
        ("title = ", "is not TOML"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(KioskError, match=re.escape(sentence)) as error:
        read(tmp_path, text)
    assert str(tmp_path / "kiosk.toml") in str(error.value)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(KioskError, match="cannot be read"):
        Kiosk.read(tmp_path / "absent.toml", {"en"})


def test_texts_stay_texts_in_the_page() -> None:
    hostile = "</script><script>alert(1)</script> $title &amp; \"'"
    kiosk = Kiosk(title=hostile, greeting=hostile, questions=[hostile], system=hostile, controls=["copy", "again"])
    page = dress.dress(PAGE, ATTRACT, kiosk)
    assert "<script>alert" not in page
    assert page.count("</script>") == PAGE.count("</script>") + 1
    assert page.count("&lt;/script&gt;&lt;script&gt;alert(1)") == 4  # Title twice, greeting, one question.
    assert '<html class="kiosk" data-controls="copy again" data-theme="auto" lang="en">' in page
    settings = re.search(r'<script type="application/json" id="kiosk">(.*?)</script>', page)
    assert settings
    assert json.loads(settings.group(1))["system"] == hostile


def test_a_page_without_a_place_for_it_is_refused() -> None:
    with pytest.raises(KioskError, match="no single"):
        dress.dress("<html lang='en'></html>", ATTRACT, Kiosk(title="A", greeting="B"))


def test_the_page_without_a_kiosk_shows_nothing_of_it() -> None:
    assert "attract" not in PAGE.replace(dress.MARK, "")


def test_the_command_line_opens_the_address_as_a_kiosk_that_reaches_nothing_else() -> None:
    command = dress.command_line("http://127.0.0.1:8000/")
    assert command.startswith("chromium \\\n  --kiosk \\\n")
    assert "'--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1'" in command
    assert command.endswith(" http://127.0.0.1:8000/")


def units() -> dict[str, str]:
    """The systemd units of docs/kiosk.md by name."""
    text = (ROOT / "docs" / "kiosk.md").read_text(encoding="utf-8")
    return dict(re.findall(r"`/etc/systemd/system/([\w-]+\.service)`.*?```\n(.*?)```", text, re.DOTALL))


def test_the_documented_unit_starts_what_the_build_prints() -> None:
    found = units()
    assert set(found) == {"handbill.service", "handbill-kiosk.service"}
    started = re.search(r"ExecStart=((?:.*\\\n)*.*)", found["handbill-kiosk.service"])
    assert started
    program, *options = shlex.split(started[1])
    assert program == "/usr/bin/chromium"
    assert options == shlex.split(dress.command_line("http://127.0.0.1:8000/"))[1:]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not there")
def test_systemd_takes_the_documented_units(tmp_path: Path) -> None:
    paths = []
    for name, text in units().items():
        paths.append(tmp_path / name)
        paths[-1].write_text(text.replace("/usr/bin/chromium", "/bin/true"), encoding="utf-8")
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, paths)], capture_output=True, text=True, check=True
    )
    assert checked.stderr == ""
