"""The exported graph in CPython: a Session over native onnxruntime and a Tokenizer over the Rust library.

The tests run the page's whole loop on these two, and verify measures the export with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import tokenizers
from safetensors.numpy import load_file

from handbill.manifest import LORA_A, LORA_B, NAME, KVLayout, Manifest
from handbill.session import Candidates, SessionError

_FIRST_CAPACITY = 256
"""Tokens that a new KV cache has room for. It doubles as needed: a short chat does not pay for a long context."""

Floats = npt.NDArray[np.float32]


class NativeSession:
    """A Session over onnxruntime's CPU kernels; ``context`` and ``chunk`` count tokens, ``threads`` 0 means all cores.

    The KV cache is one buffer per layer and kind, float32 [1, kv_heads, capacity, head_dim], bound as past and as
    present: GroupQueryAttention then writes new rows in place (its past_present_share_buffer), and what lies beyond
    ``seqlens_k`` is never read. Going back is therefore only a smaller length.

    ``adapters`` are files by the name that ``adapter`` knows them by; until it is called the model is the base.

    Raises SessionError (kind internal) if onnxruntime cannot open the graph.
    """

    runtime = "native onnxruntime"
    drafts = 4  # For graphs at accuracy_level 0: at 4, one row and several do not round alike.

    def __init__(
        self,
        graph: Path,
        kv: KVLayout,
        context: int,
        *,
        chunk: int = 512,
        threads: int = 0,
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        if kv.dtype != "float32":
            raise SessionError("internal", f"{graph} keeps its KV cache in {kv.dtype}; only float32 is known here.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Spinning threads would take a core from whoever runs beside us (a test, the other session of a comparison).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a class of its own for every error code, with no common base.
            raise SessionError("internal", f"onnxruntime cannot open {graph}: {error}") from error
        self._asks_for_places = "position_ids" in {each.name for each in self._session.get_inputs()}
        self._kv = kv
        self._context = context
        self._chunk = chunk
        self._length = 0
        self._capacity = 0
        self._cache: dict[tuple[str, str], onnxruntime.OrtValue] = {}
        self._adapters = dict(adapters or {})
        self._branches: dict[str, onnxruntime.OrtValue] = {}
        self.feed(None)

    @classmethod
    def open(cls, folder: Path, *, context: int = 0, threads: int = 0, graph: str = "wasm") -> NativeSession:
        """The model exported to ``folder``, by its manifest; ``graph`` is a key of its ``graphs``.

        ``context`` 0 takes the model's own. Raises ManifestError, OSError and SessionError.
        """
        manifest = Manifest.from_json((folder / NAME).read_text(encoding="utf-8"))
        return cls(
            folder / manifest.graphs[graph],
            manifest.kv,
            context or manifest.architecture.context,
            threads=threads,
            adapters={each.name: folder / each.file for each in manifest.adapters},
        )

    @property
    def context(self) -> int:
        """The most tokens the KV cache can hold."""
        return self._context

    @property
    def chunk(self) -> int:
        """The most tokens that one ``step`` takes."""
        return self._chunk

    @property
    def length(self) -> int:
        """Tokens in the KV cache now."""
        return self._length

    async def step(self, ids: Sequence[int], positions: int = 1) -> list[Candidates]:
        """Append ``ids`` to the KV cache; the 64 likeliest next tokens after each of the last ``positions`` of them.

        Raises SessionError if onnxruntime fails or the model computes no finite numbers (``length`` is then as before),
        and ValueError for a wrong count.
        """
        if positions < 1:
            raise ValueError(f"A step answers for at least one position, not for {positions}.")
        ids_out, logits_out = self._run(ids, positions, ["topk_ids", "topk_logits"])
        if not np.isfinite(logits_out).all():
            self.rewind(self._length - len(ids))
            raise SessionError("manifest", "The model computes no finite numbers; export it again.")
        return [Candidates(i, x) for i, x in zip(ids_out[0].tolist(), logits_out[0].tolist(), strict=True)]

    def logits(self, ids: Sequence[int], positions: int = 1) -> Floats:
        """Append ``ids`` to the KV cache; float32 [positions, vocabulary], the full logits. Raises as ``step`` does.

        With ``positions`` 0 lm_head is left out.
        """
        (logits,) = self._run(ids, positions, ["logits"])
        result: Floats = logits[0]
        return result

    async def adapter(self, name: str) -> None:
        """Compute with the adapter ``name``, "" for none, and forget every token: a KV cache is of one adapter.

        Raises SessionError (kind internal) for a name that there is not, and keeps the one before.
        """
        if name and name not in self._adapters:
            raise SessionError("internal", f"There is no adapter {name!r}.")
        self.feed(self._adapters[name] if name else None)

    def feed(self, adapter: Path | None) -> None:
        """What ``adapter`` does with a name, for the adapter in a file; None for the base alone."""
        tensors = load_file(adapter) if adapter else {}
        for wanted in self._session.get_inputs():
            if wanted.name.endswith((LORA_A, LORA_B)):
                zeros = [size if isinstance(size, int) else 1 for size in wanted.shape]
                values = tensors.get(wanted.name, np.zeros(zeros)).astype(np.float32)
                self._branches[wanted.name] = onnxruntime.OrtValue.ortvalue_from_numpy(values)
        self.rewind(0)

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens (0 ≤ length ≤ ``self.length``, else ValueError)."""
        if not 0 <= length <= self._length:
            raise ValueError(f"Cannot rewind to {length}: the KV cache holds {self._length} tokens.")
        self._length = length

    def close(self) -> None:
        """Give the memory back. The session is of no use afterwards."""
        self._cache.clear()
        self._branches.clear()
        del self._session

    def _run(self, ids: Sequence[int], positions: int, outputs: Sequence[str]) -> list[npt.NDArray[Any]]:
        count = len(ids)
        if not 1 <= count <= self._chunk or not 0 <= positions <= count:
            raise ValueError(f"Cannot step {count} tokens for {positions} positions; a chunk is {self._chunk} tokens.")
        total = self._length + count
        if total > self._context:
            raise ValueError(f"Cannot hold {total} tokens: the context is {self._context}.")
        self._reserve(total)
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        binding.bind_cpu_input("positions", np.arange(count - positions, count, dtype=np.int64))
        binding.bind_cpu_input("seqlens_k", np.array([total - 1], np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array(total, np.int32))
        if self._asks_for_places:
            binding.bind_cpu_input("position_ids", np.arange(self._length, total, dtype=np.int64)[None])
            binding.bind_cpu_input("past_sequence_length", np.array([self._length], np.int64))
        for (past, present), value in self._cache.items():
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        for name, value in self._branches.items():
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # As above: no common base.
            raise SessionError(
                "internal", f"onnxruntime failed on {count} tokens after {self._length}: {error}"
            ) from error
        self._length = total
        # Bound outputs come first to last in binding order, so the KV cache's are in front.
        return [value.numpy() for value in binding.get_outputs()[len(self._cache) :]]

    def _reserve(self, tokens: int) -> None:
        """Room for ``tokens`` in the KV cache, keeping what it holds."""
        if tokens <= self._capacity:
            return
        self._capacity = min(self._context, max(_FIRST_CAPACITY, 2 * self._capacity, tokens))
        shape = (1, self._kv.kv_heads, self._capacity, self._kv.head_dim)
        for layer in range(self._kv.layers):
            for kind in ("key", "value"):
                names = (self._kv.past.format(layer=layer, kind=kind), self._kv.present.format(layer=layer, kind=kind))
                buffer = np.zeros(shape, np.float32)
                if names in self._cache:
                    buffer[:, :, : self._length] = self._cache[names].numpy()[:, :, : self._length]
                # On the CPU an OrtValue shares the array's memory and keeps it alive.
                self._cache[names] = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)


class RustTokenizer:
    """A Tokenizer over the ``tokenizers`` library, for a tokenizer.json file. Raises OSError if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))

    @classmethod
    def open(cls, folder: Path) -> RustTokenizer:
        """The tokenizer of the model exported to ``folder``, by its manifest."""
        manifest = Manifest.from_json((folder / NAME).read_text(encoding="utf-8"))
        return cls(folder / manifest.tokenizer)

    @property
    def vocabulary(self) -> int:
        """How many token ids there are, added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def added(self) -> dict[str, bool]:
        """The tokens recognised wherever they are spelt out, and whether each is special."""
        return {token.content: token.special for token in self._tokenizer.get_added_tokens_decoder().values()}

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, with no BOS added; special tokens written out in it are recognised."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens; bytes that do not yet make a character become U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
