"""DLS, Dynamic Layer-wise Sparsification: Layer-wise Top-k whose k moves between layers until all thresholds are one.

Each layer chooses by itself all but a reserve of its k (`--dls-reserve`); with the last message, when the whole gradient is
known, the largest of the rest leave, as many values as all reserves together hold.

After every training step the rank adjusts its own k from its own v, when its last layer has been sent; the ranks tell each
other their next k (L small integers), and that exchange has the whole forward pass to finish.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from dls import traffic
from dls.cli import UsageError
from dls.comm import Pending
from dls.sparsifiers._base import Part, Section, Setup, span
from dls.sparsifiers.layerwise_topk import Method as LayerwiseTopk
from reference import methods, variance
from reference.adjustment import Counts, Thresholds
from reference.ops import Index, Vector


class Method(LayerwiseTopk):
    """DLS(s): s one-step adjustments a training step, or the optimum (`--dls-steps`), every m-th step (`--dls-every`).

    The adjustment works on what `--dls-from` takes the next step's v to be.
    """

    reads = LayerwiseTopk.reads | {"dls_steps", "dls_every", "dls_init", "dls_from", "dls_reserve"}

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._announced: tuple[Pending, NDArray[np.uint32]] | None = None

    def initial_k(self, budget: int) -> Counts:
        """Layer-wise Top-k's split, or the one that the theory's gradient variances give (`--dls-init variance`)."""
        uniform = super().initial_k(budget)
        return uniform if self.setup.config.dls_init == "uniform" else self._variance_k(uniform)

    def _variance_k(self, uniform: Counts) -> Counts:
        """Batch norm layers keep their uniform share; the others share the rest as their variance ratios tell."""
        if not self.setup.chain:
            raise UsageError("--dls-init variance needs a model whose layers form a chain; use --dls-init uniform")
        theory = [i for i, layer in enumerate(self.setup.layers) if layer.kind != "batch_norm"]
        layers = [self.setup.layers[i] for i in theory]
        sigmas = variance.chain_sigmas([variance.corrected_ratio(layer.channels_in, layer.outputs) for layer in layers[1:]])
        sizes, budget = [layer.size for layer in layers], int(uniform[theory].sum())
        k = uniform.copy()
        k[theory] = variance.sparsity_from_variances(sizes, list(sigmas), budget)
        return k

    def begin(self, step: int) -> None:
        """Hear the other ranks' k."""
        self._hear()
        super().begin(step)

    def own_k(self, k: Counts) -> Counts:
        """All but the reserve; nothing of the part whose gradient comes last, which the reserve serves as well."""
        return methods.own_k(k, self.setup.config.dls_reserve)

    def _brings_reserve(self, parts: Sequence[Part]) -> bool:
        """Whether these parts leave last, and with them what the reserve brings."""
        return parts[0].index == 0 and self.setup.config.dls_reserve > 0

    def sections(self, parts: Sequence[Part], k: Counts) -> list[Section]:
        """And, with the last ones, what the reserve brings."""
        own = super().sections(parts, k)
        if not self._brings_reserve(parts):
            return own
        reserve = k.sum(axis=1) - self.own_k(k).sum(axis=1)
        return [*own, Section(span(self.parts), reserve.tolist())]

    def completes(self, parts: Sequence[Part]) -> slice:
        """With a reserve nothing before the last message, and then everything."""
        if not self.setup.config.dls_reserve:
            return super().completes(parts)
        return span(self.parts) if self._brings_reserve(parts) else slice(0, 0)

    def choose(self, parts: Sequence[Part]) -> list[tuple[slice, Index, Vector]]:
        """Each part by itself; with the last ones also the largest of all that is left, as many as the reserve holds."""
        own = super().choose(parts)
        if not self._brings_reserve(parts):
            return own
        index, values = self.ops.top_k_of_rest(self.residual, self.offsets, self.heads, int(self.k.sum() - self.sent.sum()))
        self.sent, self.thresholds = with_rest(self.sent, self.thresholds, self.offsets, *map(self.ops.to_host, (index, values)))
        return [*own, (span(self.parts), index, values)]

    def adjust(self, step: int) -> None:
        """Move k between the layers and tell the other ranks."""
        if step % self.setup.config.dls_every:
            return
        self._announced = self._tell(self.checked(self.next_k(), int(self.sent.sum())))

    def next_k(self) -> Counts:
        """k of the next step (L), from what its v is taken to be; `choose` is over, what was sent is still in the residual."""
        algorithm2, steps = self.setup.backend.adjustment, self.setup.config.dls_steps
        if steps == 0:
            return self.sent.copy()
        as_sent = self.setup.config.dls_from == "sent"
        v = [self.v(part) for part in self.parts] if as_sent else self._guessed()
        if steps == "optimal":
            k: Counts = algorithm2.optimal_adjustment(v, self.sent)
        elif as_sent:
            k = algorithm2.adjust(v, self.sent, self.part_thresholds(), steps, self.heads)
        else:
            k = algorithm2.adjust(v, self.sent, algorithm2.fresh_thresholds(v, self.sent), steps)
        return k

    def _guessed(self) -> list[Vector]:
        """What is left of v, or that and the gradient once more, layer by layer: as many of the largest as any k can concern."""
        enough = int(self.sent.sum()) + 1
        with self._without_sent():
            return [self.ops.top_k(self._guess(part), min(enough, part.size))[1] for part in self.parts]

    def _guess(self, part: Part) -> Vector:
        left = self.v(part)
        if self.setup.config.dls_from == "ahead":
            left = left.copy()
            with np.errstate(over="ignore"):
                self.ops.accumulate(left, self.setup.gradients[part.start : part.stop])
            left.clip(-methods.LARGEST, methods.LARGEST, out=left)
        return left

    @contextmanager
    def _without_sent(self) -> Iterator[None]:
        """Zeros in place of what was sent, for a while."""
        kept = [(self.residual[chosen.place], chosen.index) for chosen in self.leaving()]
        values = [flat[index] for flat, index in kept]
        try:
            for flat, index in kept:
                flat[index] = 0
            yield
        finally:
            for (flat, index), before in zip(kept, values, strict=True):
                flat[index] = before

    def _tell(self, k: Counts) -> tuple[Pending, NDArray[np.uint32]]:
        return self.comm.allgather(k.astype(np.uint32), "the other ranks' next k")

    def _hear(self) -> None:
        if self._announced is not None:
            pending, k = self._announced
            pending.wait()
            self.k_of_ranks, self._announced = k.astype(np.int64), None

    def bytes_received(self, groups: Iterable[Sequence[Part]]) -> int:
        """And now and then the others' next k, as `_tell` sends it."""
        announced = traffic.allgather_bytes(self.k.astype(np.uint32).nbytes, self.comm.size)
        return super().bytes_received(groups) + announced // self.setup.config.dls_every

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Residual and the next step's k."""
        self._hear()
        return super().state()

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        """In place of what the ranks have announced, too."""
        self._hear()
        super().restore(state)


def with_rest(
    sent: Counts, thresholds: Thresholds, offsets: Index, index: Index, values: Vector
) -> tuple[Counts, Thresholds]:
    """What each part sends (L), and the smallest magnitude of that (L), once the reserve's entries (m) have come to them.

    offsets (L + 1). Where a part sends nothing its number is no threshold, but a good hint.
    """
    if not index.size:
        return sent, thresholds
    magnitudes, cuts, thresholds = np.abs(values), np.searchsorted(index, offsets), thresholds.copy()
    more = np.diff(cuts)
    with_more = np.flatnonzero(more)
    thresholds[with_more] = np.minimum.reduceat(magnitudes, cuts[with_more])
    thresholds[sent + more == 0] = magnitudes.min()
    return sent + more, thresholds
