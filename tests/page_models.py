"""Exports of a tiny random llama for the page's tests: with a chat template and without, a GGUF, with adapters."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import export_cache
from handbill.manifest import NAME, Manifest
from links import link
from vendor import sha256_of

SPECIAL = ("<end>", "<user>", "<assistant>")
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"


def exported(name: str) -> Path:
    """The export of tiny, tiny-base, tiny-gguf, tiny-leaky or tiny-adapted, kept in .cache/tiny between runs.

    tiny-adapted is tiny with two adapters, "legal" and "case-notes". tiny-gguf has Q4_1 weights, hence float zero
    points: WebGPU gets a graph of another form than WASM. tiny-leaky has an activation that our kernels do not know,
    hence no plan.
    """

    def make(partial: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copytree(_export(name, Path(scratch)), partial)

    return export_cache.made(export_cache.home() / "page" / name, make)


def _export(name: str, scratch: Path) -> Path:
    # Here, because they bring torch, which takes seconds and is not needed for what is kept already.
    import tiny_gguf
    from exporter.export import export
    from tiny_exports import compute_exactly

    source = scratch / name
    if name == "tiny-gguf":
        source = source.with_suffix(".gguf")
        tiny_gguf.write(source)
    else:
        _checkpoint(source, chat=name != "tiny-base", hidden_act="leaky_relu" if name == "tiny-leaky" else "silu")
    adapters = _adapters(source, scratch) if name == "tiny-adapted" else ""
    folder = export(str(source), scratch / "models", scratch / "cache", adapters=adapters)
    compute_exactly(folder)
    return folder


def _adapters(source: Path, scratch: Path) -> str:
    """Two for the checkpoint ``source``, as --adapters takes them."""
    from transformers import LlamaForCausalLM

    import tiny_adapter

    model = LlamaForCausalLM.from_pretrained(source)
    legal = tiny_adapter.save(scratch / "legal", 0, model=model)
    return f"{legal},Case Notes={tiny_adapter.save(scratch / 'notes', 1, model=model, targets=('gate_proj',))}"


def site(dist: Path, home: Path, names: Sequence[str | Path]) -> Path:
    """``home``: the page of ``dist`` with these exports (names of ours, or folders) in the place of its own."""
    shutil.copytree(dist, home, copy_function=link, ignore=shutil.ignore_patterns("models"))
    listed = json.loads((dist / "site.json").read_text(encoding="utf-8"))
    files = {name: entry for name, entry in listed["files"].items() if not name.startswith("models/")}
    offered = []
    for name in names:
        export = name if isinstance(name, Path) else exported(name)
        shutil.copytree(export, home / "models" / export.name, copy_function=link)
        manifest = Manifest.from_json((export / NAME).read_text(encoding="utf-8"))
        size = sum(entry.bytes for entry in manifest.files)
        described = export / NAME
        entry = {"bytes": described.stat().st_size, "sha256": sha256_of(described)}
        files[f"models/{export.name}/{NAME}"] = entry
        offered.append({"slug": manifest.slug, "title": manifest.title, "bytes": size})
    for path in home.glob("site.json*"):
        path.unlink()
    (home / "site.json").write_text(json.dumps(listed | {"models": offered, "files": files}), encoding="utf-8")
    return home


def _checkpoint(folder: Path, *, chat: bool, hidden_act: str) -> Path:
    """config, safetensors and a tokenizer of the 128 ASCII characters: any answer encodes to its own tokens again."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = [_letter(byte) for byte in range(128)]
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0])
    if chat:
        fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)

    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(letters) + len(SPECIAL),
        max_position_embeddings=512,
        initializer_range=0.3,
        hidden_act=hidden_act,
        eos_token_id=tokenizer.token_to_id(SPECIAL[0]),
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _letter(byte: int) -> str:
    """ByteLevel's letter for an ASCII byte (GPT-2's table): printable ones are themselves, others come after U+00FF."""
    if 33 <= byte < 127:
        return chr(byte)
    return chr(256 + (byte if byte < 33 else 33))
