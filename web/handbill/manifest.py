"""The manifest: the only thing that the exporter and the page share.

The exporter writes ``manifest.json`` last, so its existence means that the export is whole. The page
reads nothing else about a model. Standard library only, because it runs in the browser as well.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any

FORMAT = 3
"""Version of the manifest's shape. A reader refuses a newer one by number; it reads the older ones.

2 adds a certificate: what ``verification`` measured beyond a perplexity, and the page that shows it (``report``).
3 adds ``adapters``; a manifest without any is written as 2, which older pages read.
"""

NAME = "manifest.json"
LORA_A, LORA_B = ".lora_a", ".lora_b"
"""How an adapter's tensors, and the graph's inputs that they fill, are called after the matrix of the graph."""

MAX_FILE_BYTES = 1 << 30
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ManifestError(ValueError):
    """A manifest that cannot be used. The message is a sentence for the reader, ``kind`` the protocol's fault kind."""

    kind = "manifest"


@dataclass(frozen=True)
class File:
    """One file beside the manifest: a plain name (no folder), its size in bytes and its sha256 in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """Where weights came from: ``kind`` is hub, folder, gguf or package, ``revision`` a commit, version or sha256."""

    kind: str
    name: str
    revision: str


@dataclass(frozen=True)
class Architecture:
    """Shapes a runtime needs before it opens the graph. ``context`` counts tokens, ``parameters`` weights."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    parameters: int


@dataclass(frozen=True)
class KVLayout:
    """Names and shape of the KV cache: float32 [1, kv_heads, tokens, head_dim] for each of ``layers``.

    ``past`` and ``present`` are graph input and output names with ``{layer}`` and ``{kind}`` (key or value).
    """

    dtype: str
    layers: int
    kv_heads: int
    head_dim: int
    past: str = "past_key_values.{layer}.{kind}"
    present: str = "present.{layer}.{kind}"


@dataclass(frozen=True)
class Quantization:
    """How weights are stored. ``bits`` of the linear layers, ``embedding_bits`` of the shared embedding and lm_head,
    ``block_size`` weights share one scale, ``bits_per_weight`` is all weight bytes over all weights."""

    method: str
    bits: int
    embedding_bits: int
    block_size: int
    bits_per_weight: float


@dataclass(frozen=True)
class Generation:
    """Defaults for sampling, as the checkpoint recommends them."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 50
    repetition_penalty: float = 1.0
    max_tokens: int = 512


@dataclass(frozen=True)
class Greedy:
    """Greedy answers of the shipped graph to ``prompts`` prompts, at most ``tokens`` tokens each: ``agreed`` of
    ``compared`` tokens are those that the source finds likeliest after the same tokens, ``identical`` answers agree in
    all of them. ``prompts`` is 0 where this was not measured."""

    prompts: int = 0
    tokens: int = 0
    compared: int = 0
    agreed: int = 0
    identical: int = 0


@dataclass(frozen=True)
class Verification:
    """What verify measured. Differences are the largest absolute logit difference from eager torch with the same
    weights at accuracy_level 0, and at most ``allowed``; where torch's own float32 is ``float32`` (not 0) from float64,
    they are from that. Everything else is on ``text``, which no method is calibrated on: the perplexities of
    the source, of eager torch with the quantized weights, and of the graph as it ships (accuracy_level 4); the mean
    Kullback-Leibler divergence of the shipped graph's predictions from the source's, in nats a token; the share of
    tokens after which both find the same one likeliest."""

    prefill: float
    chunked: float
    decode: float
    tokens: int
    text: str
    perplexity_source: float
    perplexity_shipped: float
    perplexity_ratio: float
    perplexity_quantized: float = 0.0
    kl_divergence: float = 0.0
    top1_agreement: float = 0.0
    float32: float = 0.0
    allowed: float = 1e-4
    greedy: Greedy = field(default_factory=Greedy)


@dataclass(frozen=True)
class Check:
    """What a device has to compute before it may answer: after the tokens ``ids`` the likeliest next ones are
    ``candidates`` with ``logits``, largest first, by eager torch with the same weights. Older exports have none."""

    ids: list[int] = field(default_factory=list)
    candidates: list[int] = field(default_factory=list)
    logits: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Licence:
    """The model's licence: its SPDX identifier or name, and the file that holds its text ("" if none travels)."""

    name: str
    file: str = ""


@dataclass(frozen=True)
class Adapter:
    """A LoRA (arXiv 2106.09685) that lies beside the weights, for a page to switch on.

    ``file`` is a safetensors file of float16 tensors, which the graph's inputs of the same names are fed; inputs that
    it lacks get zeros of rank 1. ``rank`` is the largest that it has, ``difference`` the largest absolute difference of
    a logit from eager torch with the same adapter, at accuracy_level 0.
    """

    name: str
    title: str
    file: str
    rank: int
    source: Source
    licence: Licence
    difference: float


@dataclass(frozen=True)
class Manifest:
    """All that the page knows of a model.

    ``graphs`` maps a runtime ("wasm", "webgpu") to a graph's file name; each reads the same ``weights``. ``plan`` is
    the flat plan of the CPU int4 session, "" where the model has an operator it does not know. ``report`` is a page for
    people that shows how faithful the export is. ``files`` lists every file of the export but the manifest itself.
    """

    slug: str
    title: str
    source: Source
    licence: Licence
    architecture: Architecture
    kv: KVLayout
    quantization: Quantization
    generation: Generation
    verification: Verification
    graphs: dict[str, str]
    weights: list[str]
    tokenizer: str
    eos_ids: list[int]
    bos_token: str
    eos_token: str
    chat_template: str
    files: list[File]
    tools: dict[str, str]
    plan: str = ""
    report: str = ""
    format: int = 2
    top_k: int = field(default=64)
    check: Check = field(default_factory=Check)
    adapters: list[Adapter] = field(default_factory=list)

    def file(self, name: str) -> File:
        """The entry of ``name``. Raises ManifestError if the manifest does not list it."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise ManifestError(f"The manifest of {self.slug} does not list {name}; export the model again.")

    def to_json(self) -> str:
        """UTF-8 text with sorted keys, ending in a newline."""
        data = dataclasses.asdict(self)
        if not self.adapters:
            del data["adapters"]
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read and check a manifest.

        Raises ManifestError for text that is not JSON, an unknown or missing key, a value of the wrong type, a newer
        format, a file name with a folder in it, an absurd size, or a name that ``files`` does not list.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"The manifest is not JSON ({error}); export the model again.") from None
        if isinstance(data, dict) and isinstance(data.get("format"), int) and data["format"] > FORMAT:
            raise ManifestError(f"The manifest has format {data['format']}, newer than {FORMAT}: update Handbill.")
        manifest: Manifest = _build(cls, data, "manifest")
        _check(manifest)
        return manifest


def _build(cls: Any, data: Any, where: str) -> Any:
    """``data`` as an instance of the annotation ``cls``, checked all the way down."""
    if dataclasses.is_dataclass(cls):
        if not isinstance(data, dict):
            raise ManifestError(f"The manifest's {where} should be an object; export the model again.")
        hints = typing.get_type_hints(cls)
        unknown = sorted(set(data) - set(hints))
        missing = sorted(
            f.name
            for f in dataclasses.fields(cls)
            if f.name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        )
        if unknown or missing:
            what = f"has an unknown key {unknown[0]!r}" if unknown else f"lacks the key {missing[0]!r}"
            raise ManifestError(f"The manifest's {where} {what}; export the model again with this version.")
        return cls(**{key: _build(hints[key], value, f"{where}.{key}") for key, value in data.items()})  # type: ignore[operator]
    origin = typing.get_origin(cls)
    if origin in (list, dict) and isinstance(cls, types.GenericAlias):
        if not isinstance(data, origin):
            raise ManifestError(f"The manifest's {where} should be a {origin.__name__}; export the model again.")
        arguments = typing.get_args(cls)
        if origin is list:
            return [_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data)]
        return {str(key): _build(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    if cls is float and isinstance(data, int) and not isinstance(data, bool) and abs(data) < 1 << 1000:
        return float(data)
    if type(data) is not cls:
        raise ManifestError(f"The manifest's {where} should be {cls.__name__}, not {data!r}; export the model again.")
    return data


def _check(manifest: Manifest) -> None:
    """What types alone do not say: plain file names, sane sizes, and that every named file is listed."""
    for entry in manifest.files:
        if not _PLAIN_NAME.fullmatch(entry.name):
            raise ManifestError(f"The manifest names a file {entry.name!r}, which is not a plain file name.")
        if not 0 < entry.bytes <= MAX_FILE_BYTES:
            raise ManifestError(f"The manifest gives {entry.name} an impossible size of {entry.bytes} bytes.")
        if not _SHA256.fullmatch(entry.sha256):
            raise ManifestError(f"The manifest's sha256 of {entry.name} is not 64 hexadecimal digits.")
    if not _PLAIN_NAME.fullmatch(manifest.slug):
        raise ManifestError(f"The manifest's slug {manifest.slug!r} is not a plain name.")
    optional = [
        manifest.plan,
        manifest.licence.file,
        manifest.report,
        *(each.licence.file for each in manifest.adapters),
    ]
    named = [*manifest.graphs.values(), *manifest.weights, manifest.tokenizer, *filter(None, optional)]
    for name in [*named, *(each.file for each in manifest.adapters)]:
        manifest.file(name)
    names = [each.name for each in manifest.adapters]
    if "" in names or len(set(names)) != len(names):
        raise ManifestError("The manifest has adapters without names of their own; export the model again.")
    if any(each.rank < 1 for each in manifest.adapters):
        raise ManifestError("The manifest has an adapter of a rank below 1; export the model again.")
    if not manifest.graphs or not manifest.weights:
        raise ManifestError("The manifest lists no graph or no weights; export the model again.")
    if len(manifest.check.candidates) != len(manifest.check.logits):
        raise ManifestError("The manifest's check has candidates without logits; export the model again.")
    shape = manifest.architecture
    if min(shape.layers, shape.kv_heads, shape.head_dim, shape.vocabulary, shape.context) < 1:
        raise ManifestError("The manifest's architecture has a size below 1; export the model again.")
