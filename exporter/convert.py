"""Hand a substituted model to Hugging Face Optimum, which traces it into model.onnx."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from optimum.exporters.onnx import onnx_export_from_model
from optimum.exporters.onnx.model_patcher import ModelPatcher
from optimum.exporters.tasks import TasksManager
from torch import Tensor
from transformers.cache_utils import Cache

from exporter.attention import NewKeysOnly, rotary_inside
from exporter.modules import Step
from exporter.operators import split
from exporter.substitute import Substituted

TOP_K = 64
OPSET = 20
_PARAMETERS = ("input_ids", "positions", "seqlens_k", "total_sequence_length", "past_key_values")


class SubstitutedPatcher(ModelPatcher):  # type: ignore[misc]
    """Gives the model the forward signature of our graph (inputs and outputs as in ARCHITECTURE.md) while traced."""

    def __init__(self, config: Any, model: Any, model_kwargs: dict[str, Any] | None = None) -> None:
        # Optimum forces logits_to_keep=0 through model_kwargs: lm_head would see every position.
        kwargs = {key: value for key, value in (model_kwargs or {}).items() if key != "logits_to_keep"}
        super().__init__(config, model, kwargs)
        inner: Any = self.orig_forward  # type: ignore[has-type]
        substituted: Substituted = config.substituted
        self._original, self._rotary = inner, contextlib.ExitStack()
        self._rotary_modules = substituted.rotary_modules

        def forward(
            input_ids: Any, positions: Any, seqlens_k: Any, total_sequence_length: Any, past_key_values: Any, **_: Any
        ) -> dict[str, Any]:
            layers = past_key_values.layers if isinstance(past_key_values, Cache) else None
            past = [(layer.keys, layer.values) for layer in layers] if layers else list(past_key_values)
            step = Step(past=past, seqlens_k=seqlens_k, total=total_sequence_length)
            substituted.begin(step)
            cache = NewKeysOnly(past[0][0].shape[2])
            outputs = inner(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=positions)
            logits = outputs["logits"]
            values, ids = torch.topk(logits, min(TOP_K, logits.shape[-1]), dim=-1)
            present = tuple(step.present[layer] for layer in range(substituted.layers))
            return {"logits": logits, "topk_logits": values, "topk_ids": ids, "past_key_values": present}

        # Optimum calls self.orig_forward and orders the graph's inputs by its signature.
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, kind, default=None) for name in _PARAMETERS]
        )
        self.orig_forward = forward
        self._wrap(forward)

    def _wrap(self, forward: Any) -> None:
        """patched_forward carries functools.wraps of the old forward; the exporter reads its signature too."""
        self.patched_forward.__wrapped__ = forward
        self.patched_forward.__signature__ = forward.__signature__

    def __enter__(self) -> Any:
        super().__enter__()
        self._rotary.enter_context(rotary_inside(self._rotary_modules))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._rotary.close()
        super().__exit__(*exception)
        setattr(self._model, self.orig_forward_name, self._original)


def _onnx_config(substituted: Substituted, kv_heads: int, head_dim: int) -> Any:
    """The architecture's own registered OnnxConfig, with our inputs and outputs."""
    model, layers = substituted.model, substituted.layers
    constructor = TasksManager.get_exporter_config_constructor(
        model=model, exporter="onnx", task="text-generation", library_name="transformers"
    )
    base = getattr(constructor, "func", constructor)
    cache_axes = {0: "batch_size", 2: "past_sequence_length"}
    present_axes = {0: "batch_size", 2: "total_length"}
    asked = {0: "batch_size", 1: "num_positions"}

    class SubstitutedConfig(base):  # type: ignore[misc, valid-type]
        _MODEL_PATCHER = SubstitutedPatcher

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            past = {f"past_key_values.{i}.{kind}": cache_axes for i in range(layers) for kind in ("key", "value")}
            names: dict[str, dict[int, str]] = {
                "input_ids": {0: "batch_size", 1: "sequence_length"},
                "positions": {0: "num_positions"},
                "seqlens_k": {0: "batch_size"},
                "total_sequence_length": {},
            }
            return names | past

        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            present = {f"present.{i}.{kind}": present_axes for i in range(layers) for kind in ("key", "value")}
            return {"logits": asked, "topk_logits": asked, "topk_ids": asked} | present

        def ordered_inputs(self, _: Any) -> dict[str, dict[int, str]]:
            return self.inputs

        def fix_dynamic_axes(self, *_: Any, **__: Any) -> None:
            """Optimum would load the model to find sizes; ours are said above."""

        def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Any]:
            past, tokens = 3, 5
            zeros = torch.zeros(1, kv_heads, past, head_dim)
            return {
                "input_ids": torch.zeros(1, tokens, dtype=torch.int64),
                "positions": torch.tensor([1, 4]),
                "seqlens_k": torch.tensor([past + tokens - 1], dtype=torch.int32),
                "total_sequence_length": torch.tensor(past + tokens, dtype=torch.int32),
                "past_key_values": [(zeros, zeros) for _ in range(layers)],
            }

    config = SubstitutedConfig(model.config, task="text-generation", use_past=True, use_past_in_inputs=True)
    config.substituted = substituted
    return config


def convert(substituted: Substituted, kv_heads: int, head_dim: int, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Trace into ``folder``/model.onnx, and return its path and the initializers that are not in it, by name.

    What tracing never looks into, the codes and zero points, is nearly all there is: a number stands in for each, and
    the tensors themselves go into the shards without having passed through torch's exporter and protobuf (which copy,
    and end at 2 GB). ``folder`` must be empty or new.
    """
    with _quiet(), _chunks_split(), _stand_ins(substituted.model) as left_out:
        onnx_export_from_model(
            substituted.model,
            folder,
            task="text-generation-with-past",
            opset=OPSET,
            custom_onnx_configs={"model": _onnx_config(substituted, kv_heads, head_dim)},
            do_validation=False,  # verify compares far more than Optimum's one dummy input
            no_post_process=True,
            do_constant_folding=False,  # folding would write a shared tensor twice
            batch_size=1,
        )
    return folder / "model.onnx", left_out


@contextlib.contextmanager
def _stand_ins(model: Any) -> Iterator[dict[str, Tensor]]:
    """Each ``codes`` and ``zeros`` (uint8) replaced by eight bytes that no other has, as equal initializers become one;
    put back after."""
    left_out: dict[str, Tensor] = {}
    owned: dict[tuple[Any, str], Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):  # traced under the first path or another
        for key, buffer in module.named_buffers(recurse=False):
            if (module, key) not in owned and key in ("codes", "zeros"):
                owned[module, key] = buffer
                setattr(module, key, torch.tensor([len(owned)]).view(torch.uint8))
            if (module, key) in owned:
                left_out[f"{path}.{key}"] = owned[module, key]
    try:
        yield left_out
    finally:
        for (module, key), real in owned.items():
            setattr(module, key, real)


@contextlib.contextmanager
def _chunks_split() -> Iterator[None]:
    torch.onnx.register_custom_op_symbolic("prim::ConstantChunk", split, OPSET)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("prim::ConstantChunk", OPSET)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of every Python branch it passes; verify is what says whether a branch mattered."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
