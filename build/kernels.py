"""Compile web/kernels/ to WebAssembly with the C compiler of the `ziglang` package.

``python build/kernels.py OUT`` writes two files into the folder OUT: ``alone.wasm``, and ``threads.wasm`` over shared
memory, whose type a module must name in advance.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "web" / "kernels"

FEATURES = "generic+simd128+bulk_memory+atomics+mutable_globals+nontrapping_fptoint+sign_ext"
COMPILE = ["-target", "wasm32-freestanding", "-O3", "-g0", "-nostdlib", "-Wall", "-Wextra", "-Werror"]
# Loop strength reduction makes one counter serve all of a loop's addresses, which V8 then computes one by one where
# loads would have taken a constant offset: 2 % of a prefill and a seventh of the kernels' size.
COMPILE += ["-mllvm", "-disable-lsr"]
LINK = ["-Wl,--no-entry,--import-memory,--export=__stack_pointer,--export=__heap_base,--strip-all"]
SHARED = ",--shared-memory,--max-memory=4294901760"  # 4 GiB less a page: the linker's number has 32 bits
VARIANTS = {"alone.wasm": "", "threads.wasm": SHARED}
"""File name → what the linker is told of the memory."""


class KernelsError(Exception):
    """The kernels do not compile. The message is a sentence and the compiler's words."""


def build(target: Path, cache: Path | None = None) -> list[Path]:
    """Write the files into the folder ``target`` and return their paths.

    With ``cache`` (a folder) they are compiled only if a source or the compiler changed since they were put there.
    Raises KernelsError if the compiler fails; no half-written file is left.
    """
    target.mkdir(parents=True, exist_ok=True)
    if cache is None:
        return [_compile(name, target) for name in VARIANTS]
    kept = cache / _fingerprint()
    for name in VARIANTS:
        if not (kept / name).is_file():
            kept.mkdir(parents=True, exist_ok=True)
            _compile(name, kept)
        partial = target / f".{name}.partial"
        shutil.copy2(kept / name, partial)
        partial.replace(target / name)  # never into the old file, which may be linked elsewhere, or be running
    return [target / name for name in VARIANTS]


def _fingerprint() -> str:
    """Hex digest of everything that decides the output."""
    digest = hashlib.sha256()
    digest.update(repr((importlib.metadata.version("ziglang"), FEATURES, COMPILE, LINK, SHARED)).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(name: str, target: Path) -> Path:
    output, partial = target / name, target / f".{name}.partial"
    command = [sys.executable, "-m", "ziglang", "cc", *COMPILE, f"-mcpu={FEATURES}"]
    command += [str(path) for path in sorted(SOURCES.glob("*.c"))]
    command += [LINK[0] + VARIANTS[name], "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        raise KernelsError(f"web/kernels does not compile to {name}:\n{done.stderr.strip()}")
    partial.replace(output)
    return output


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the CPU kernels to WebAssembly.")
    parser.add_argument("out", type=Path, help="folder that receives the .wasm files")
    try:
        for path in build(parser.parse_args().out):
            print(f"{path}: {path.stat().st_size:,} bytes")
    except KernelsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
