"""One pass over a checkpoint's weights: the eager model runs on a text while each matrix it reaches is quantized.

Two streams go side by side through the model's own code: the source's weights on the first, what their Blocks stand
for on the second. A matrix is read in pieces, multiplied, quantized and dropped, so memory holds the activations of a
text and one matrix, whatever the model's size. Where every matrix goes in without loss, one stream says it all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPast

from exporter.agreement import Floats, Measured, Predictions, Tally
from exporter.blocks import Blocks
from exporter.heap import keep_pieces
from exporter.progress import stage
from exporter.skeleton import matrices
from exporter.store import Store
from exporter.weights import Matrix, Weights
from exporter.workers import workers

Round = Callable[[Tensor], Blocks]
"""float32 rows [n, columns] of a matrix → their Blocks. Called with the pieces of a matrix, on several threads."""

Choose = Callable[[Matrix, Tensor | None], Round]
"""How to quantize a matrix. Its inputs float32 [tokens, columns] come from the stream of quantized weights, so they
carry the error of all matrices before; an embedding has None."""

Use = Callable[[slice, Tensor, Tensor], None]
"""What is done with some rows of a matrix, float32 [n, columns]: the source's, and what their Blocks stand for."""

LOGITS = 1 << 26
"""Logits computed at once, 256 MB of them: a vocabulary of 256,000 makes a long text's too many to keep."""


@dataclass(frozen=True)
class Streamed:
    """The source's perplexity on the text, what its quantized weights make of it, and the logits [positions,
    vocabulary] of these at its beginning."""

    source: float
    quantized: Measured
    reference: Floats
    errors: dict[str, float]
    """Root mean square of the errors over that of the weights, by name; what went in without loss is left out."""


@torch.no_grad()
def stream(
    model: Any, weights: Weights, store: Store, choose: Choose, ids: Sequence[int], positions: Sequence[int],
    calibration: Tensor | None = None,
) -> Streamed:  # fmt: skip
    """Quantize every matrix of ``model`` (a skeleton) into ``store``, and measure the model on the text ``ids``.

    Logits at ``positions`` of the text, in order, are kept, and the source's Predictions in the store's folder.
    ``calibration`` int64 [sequences, len(ids)] goes along in the quantized stream: ``choose`` sees its tokens after the
    text's own.
    """
    keep_pieces()
    found = matrices(model, weights)
    by_name = {matrix.name: matrix for matrix in found}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: f"{name}.weight" for name, module in model.named_modules()}
    table = by_name[names[embedding]]
    last = by_name.get(names[head], table)  # a tied lm_head computes with the embedding's matrix
    exact = {matrix.name for matrix in found if _keep(matrix, store)}
    rows = [1] if len(exact) == len(found) else [1, 1 + (0 if calibration is None else len(calibration))]
    tokens = torch.tensor([list(ids)] * min(2, sum(rows)))
    if calibration is not None and len(rows) == 2:
        tokens = torch.cat([tokens, calibration])
    step = max(1, LOGITS // (last.rows * min(2, sum(rows))))
    read = [matrix for matrix in found if matrix is table or matrix is not last] + [last] * -(-len(ids) // step)
    with (
        stage("Quantizing", sum(matrix.rows * matrix.columns for matrix in read), "weights") as bar,
        ExitStack() as patches,
    ):
        run = Pass(store, choose, exact, rows, bar.update, patches.enter_context(workers()))
        patches.enter_context(run.embedding(embedding, table, tokens))
        for module in model.modules():
            if isinstance(module, nn.Linear):
                patches.enter_context(run.linear(module, by_name.get(names[module], table)))
        hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
        predictions = Predictions.create(store.folder, len(ids), last.rows)
        alone, both, reference = _measure(_slices(model, hidden[:2], step), predictions, ids, positions)
        return Streamed(alone.perplexity, both, reference, run.errors)


def _keep(matrix: Matrix, store: Store) -> bool:
    blocks = matrix.blocks()
    if blocks is not None:
        store.write(matrix.name, blocks)
    return blocks is not None


@dataclass(frozen=True)
class _Made:
    """Blocks of a piece, and the sums of the squares of their errors and of the weights."""

    part: Blocks
    error: float
    power: float


def _made(part: Blocks, quantized: Tensor, source: Tensor) -> _Made:
    wrong, weights = (quantized - source).flatten(), source.flatten()
    largest = max(-float(wrong.min()), float(wrong.max()))
    return _Made(replace(part, error=largest), float(wrong.dot(wrong)), float(weights.dot(weights)))


@dataclass
class Pass:
    """Hands a skeleton's modules their matrices as its forward reaches them, and puts what it makes into ``store``.

    The streams are computed in ``dtype``.
    """

    store: Store
    choose: Choose
    exact: set[str]
    rows: list[int]
    """Sequences in each stream: [1] where all is exact, else the source's one and those of the quantized weights."""

    report: Callable[[int], None]
    pool: Executor
    dtype: torch.dtype = torch.float32
    mode: Callable[[], AbstractContextManager[Any]] = torch.no_grad
    """What the computing thread has to be in; torch's modes are a thread's own."""

    errors: dict[str, float] = field(default_factory=dict)

    def over(self, matrix: Matrix, inputs: Tensor | None, use: Use) -> None:
        """Call ``use`` for every piece of ``matrix``, several at a time; what is not in the store yet is made."""
        known = self.store.read(matrix.name) if matrix.name in self.store else None
        round_rows = None if known else self.choose(matrix, inputs)

        def work(rows: slice) -> _Made | None:
            with self.mode():
                source = None if matrix.name in self.exact else matrix.read(rows)
                if known is None:
                    assert round_rows is not None and source is not None
                    part = round_rows(source)
                else:
                    part = known.take_rows(rows)
                quantized = part.dequantize().to(self.dtype)
                use(rows, quantized if source is None else source, quantized)
                return _made(part, quantized, source) if known is None and source is not None else None

        made = None
        error = power = 0.0
        for rows, found in zip(matrix.pieces(), self.pool.map(work, matrix.pieces()), strict=True):
            if found is not None:
                made = found.part.room_for(matrix.rows) if made is None else made
                made = made.with_rows(rows, found.part)
                error, power = error + found.error, power + found.power
            self.report((rows.stop - rows.start) * matrix.columns)
        if made is not None:
            self.store.write(matrix.name, made)
            self.errors[matrix.name] = math.sqrt(error / power) if power else 0.0

    @contextmanager
    def linear(self, module: nn.Linear, matrix: Matrix) -> Iterator[None]:
        """``module`` computes with ``matrix`` from the checkpoint, each stream with its own weights."""

        def forward(x: Tensor) -> Tensor:
            y = x.new_empty(*x.shape[:-1], matrix.rows)
            sizes = self.rows if len(x) == sum(self.rows) else [1] * len(x)
            streams, results = torch.split(x, sizes), torch.split(y, sizes)

            def multiply(rows: slice, *weights: Tensor) -> None:
                bias = None if module.bias is None else module.bias[rows]
                for stream, into, each in zip(streams, results, weights, strict=False):
                    into[..., rows] = functional.linear(stream, each, bias)

            self.over(matrix, streams[-1].reshape(-1, matrix.columns), multiply)
            return y

        module.forward = forward  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del module.forward

    @contextmanager
    def embedding(self, module: nn.Embedding, matrix: Matrix, tokens: Tensor) -> Iterator[None]:
        """``module`` holds only the rows that ``tokens`` need, once a stream, and its own forward looks them up."""
        used, places = torch.unique(tokens, return_inverse=True)
        table = torch.empty(len(self.rows), len(used), matrix.columns, dtype=self.dtype)
        if matrix.name in self.exact:
            table[:] = self.store.read(matrix.name).take_rows(used).dequantize()
            self.report(matrix.rows * matrix.columns)
        else:

            def look_up(rows: slice, *weights: Tensor) -> None:
                wanted = (used >= rows.start) & (used < rows.stop)
                for stream, each in zip(table, weights, strict=True):
                    stream[wanted] = each[used[wanted] - rows.start]

            self.over(matrix, None, look_up)
        stream_of = torch.repeat_interleave(torch.arange(len(self.rows)), torch.tensor(self.rows))
        places = places + len(used) * stream_of[:, None]
        own, padding = module.weight, module.padding_idx
        module.weight, module.padding_idx = nn.Parameter(table.flatten(0, 1), requires_grad=False), None
        hook = module.register_forward_pre_hook(lambda *_: (places,))
        try:
            yield
        finally:
            hook.remove()
            module.weight, module.padding_idx = own, padding


def _slices(model: Any, hidden: Tensor, step: int) -> Iterator[Tensor]:
    """Logits [streams, n, vocabulary] of ``hidden``, ``step`` positions at a time, by the model's own last lines."""
    for part in torch.split(hidden, step, 1):
        output = BaseModelOutputWithPast(last_hidden_state=part)
        model.get_decoder().forward = lambda *_, output=output, **__: output
        try:
            yield model(input_ids=torch.zeros(part.shape[:2], dtype=torch.int64), use_cache=False).logits
        finally:
            del model.get_decoder().forward


def _measure(
    slices: Iterator[Tensor], predictions: Predictions, ids: Sequence[int], positions: Sequence[int]
) -> tuple[Measured, Measured, Floats]:
    """The source and its quantized weights on ``ids``, and the reference. ``predictions`` become the source's."""
    source, quantized = Tally(predictions, ids), Tally(predictions, ids)
    reference = []
    for logits in slices:
        first, last = logits[0].numpy(), logits[-1].numpy()
        start = source.positions
        predictions.put(start, first)
        source.add(first)
        if len(logits) == 2:
            quantized.add(last)
        reference.append(last[[each - start for each in positions if start <= each < source.positions]])
    alone = source.measured()
    both = quantized.measured() if quantized.positions else Measured(alone.perplexity, 0.0, 1.0)
    return alone, both, np.concatenate(reference)
