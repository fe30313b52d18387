"""A communication hook for PyTorch's DistributedDataParallel, for programs that must keep it.

DistributedDataParallel packs gradients into buckets of its own, and packs them anew after its first
step. The hook goes by the parameters that a bucket holds, never by its number, so what a rank has
not sent stays with its parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from dls.exchange import methods, settings
from dls.exchange.exchanger import Row
from dls.torch import ranks, setup, states
from dls.torch.parameters import Tensor, tracked
from dls.torch.steps import Steps
from dls.torch.words import Words


def comm_hook(
    ddp: Tensor,
    method: str = "dls",
    *,
    comm: Any = None,
    backend: str = "",
    bucket_size: int = setup.BUCKET_SIZE,
    scaler: Any = None,
    check_every: int = 100,
    threads: int = 0,
    timeout: float = 600.0,
    **of_method: Any,
) -> tuple[Hook, Callable[[Hook, Any], Any]]:
    """What `register_comm_hook` takes; every rank calls it with the same arguments.

        ddp = DistributedDataParallel(model)
        ddp.register_comm_hook(*dls.torch.comm_hook(ddp, method="dls", density=0.01))

    The program is started with mpirun: the gradients travel over MPI, and DistributedDataParallel's
    own process group carries its buffers. Arguments as those of `attach`. ValueError, on all ranks.
    """
    options = setup.HookOptions(
        comm=comm,
        backend=backend,
        bucket_size=bucket_size,
        scaler=scaler,
        check_every=check_every,
        threads=threads,
        timeout=timeout,
    )
    hook = Hook(getattr(ddp, "module", ddp), method, options, of_method)
    return hook, lambda state, bucket: state(bucket)  # PyTorch wants no annotations but its own


class Hook:
    """The state of the hook. `row`: of the last step, bytes and seconds."""

    def __init__(
        self, model: Tensor, method: str, options: setup.HookOptions, of_method: Mapping[str, Any]
    ) -> None:
        self.parameters, self.method = tracked(model), method
        kind = methods.find(method)
        own = settings.build(kind.Settings, of_method)
        self.comm = ranks.comm(options.comm, options.timeout)
        same = {"method": method, "settings": own, **options.same()}
        ranks.check_same(self.comm, same, [each.describe() for each in self.parameters])
        tensors = [each.tensor for each in self.parameters]
        ranks.check_threads(self.comm, tensors, overlap=True)
        found = setup.backend(options.backend, tensors[0], self.comm, options.threads)
        self.backend, self.threads = found
        with self._computing():
            self.stepper = Steps(
                self.parameters, kind, own, self.comm, self.backend, **options.of_steps()
            )
        self.words = Words(self.comm, self.parameters, options.check_every)
        self._numbers = {id(tensor): number for number, tensor in enumerate(tensors)}
        self._held: list[tuple[Tensor, list[tuple[int, Tensor]], Any]] = []
        self.row: Row | None = None

    @property
    def steps(self) -> int:
        """Finished steps."""
        return self.stepper.finished

    def __call__(self, bucket: Any) -> Any:
        """Send a bucket's gradients; the future of its buffer, which the last bucket completes."""
        pairs = zip(bucket.parameters(), bucket.gradients(), strict=True)
        gradients = [(self._numbers[id(parameter)], gradient) for parameter, gradient in pairs]
        buffer = bucket.buffer()
        devices = [buffer.device] if buffer.device.type == "cuda" else []
        future = torch.futures.Future(devices=devices)
        self._held.append((buffer, gradients, future))
        with self._computing():
            if self.stepper.agreed:
                self._send(gradients)
            if bucket.is_last():
                self._finish()
        return future

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Without a graph, in the order of PyTorch's own work."""
        with torch.no_grad(), setup.in_stream_of(self.parameters[0].tensor, self.backend):
            yield

    def _send(self, gradients: list[tuple[int, Tensor]]) -> None:
        self.stepper.begin()
        for number, gradient in gradients:
            self.stepper.leave(number, gradient)

    def _finish(self) -> None:
        """The last bucket is there: every gradient becomes the mean."""
        everything = [each for _, gradients, _ in self._held for each in gradients]
        if not self.stepper.agreed:
            self.stepper.observe([number for number, _ in everything])
            self.stepper.agree()
            self._send(everything)
        self.stepper.leave_rest()
        self.words.post(self.stepper.finished)
        self.row = self.stepper.end()
        self.words.hear()
        for number, gradient in everything:
            each = self.parameters[number]
            values = torch.view_as_real(gradient) if gradient.is_complex() else gradient
            values.copy_(each.piece.view(each.shape))
        self.stepper.stop_clock()
        self.stepper.start_clock()
        held, self._held = self._held, []
        for buffer, _, future in held:
            future.set_result(buffer)

    def state_dict(self) -> states.State:
        """What this rank needs to go on; each rank saves and loads its own."""
        with self._computing():
            return states.save(self.stepper, self.method)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Go on from what `state_dict` gave on this rank; every rank calls it, between two steps.

        See `Sync.load_state_dict`.
        """
        with self._computing():
            states.load(self.stepper, state, self.method, strict)
