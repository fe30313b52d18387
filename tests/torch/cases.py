"""What every rank does in a test: run by workers of one process, and by ranks under mpirun.

On the CPU, unless DLS_TEST_TORCH names a CUDA device: models and inputs are then there, and CuPy
takes numpy's part.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

import dls.torch
from dls.comm.base import Comm
from reference import methods
from reference.cluster import Cluster
from tests.exchanging import Recorded

Case = Callable[[Comm], None]
CASES: dict[str, Case] = {}


DEVICE = torch.device(os.environ.get("DLS_TEST_TORCH", "cpu"))
BACKENDS = ("cupy", "cupy") if DEVICE.type == "cuda" else ("numpy", "numba")
"""What the tests take there: mostly the first, and where it matters the fast one."""


def on_device(function: Case) -> Case:
    """With PyTorch's tensors made on the tests' device, which is a setting of each thread."""

    @functools.wraps(function)
    def there(comm: Comm) -> None:
        with DEVICE:
            function(comm)

    return there


def case(function: Case) -> Case:
    """A case of tests/torch: it asserts on each rank."""
    CASES[function.__name__] = on_device(function)
    return function


def attach(model: Any, comm: Comm, method: str = "dls", **options: Any) -> dls.torch.Sync:
    chosen = {"backend": BACKENDS[0], "threads": 1, "bucket_size": 24} | options
    if method != "dense":
        chosen = {"density": 0.2} | chosen
    return dls.torch.attach(model, method, comm=comm, **chosen)


def net(seed: int = 3) -> nn.Sequential:
    with seeded(seed), DEVICE:
        return nn.Sequential(
            nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 4)
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Meanwhile PyTorch's random numbers are these, on every device."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def inputs(rank: int, step: int, *shape: int) -> Any:
    generator = torch.Generator("cpu").manual_seed(1000 * rank + step)
    return torch.randn(shape or (5, 6), generator=generator, device="cpu").to(DEVICE)


def loss(model: Any, rank: int, step: int) -> Any:
    return model(inputs(rank, step)).square().sum()


def backward_of(rank: int, step: int) -> Callable[[Any], Any]:
    return lambda model: loss(model, rank, step).backward()


def grads(model: Any) -> dict[str, Any]:
    return {
        name: None if p.grad is None else p.grad.detach().clone()
        for name, p in model.named_parameters()
    }


def own_gradients(model: Any, backward: Callable[[Any], Any]) -> dict[str, Any]:
    """What a backward pass gives on this rank alone, with the same weights."""
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.grad = None
    backward(twin)
    return grads(twin)


def mean_of_ranks(comm: Comm, own: dict[str, Any]) -> dict[str, Any]:
    """The dense mean; no gradient counts as zero."""
    everyone = comm.allgather_objects(own)
    found: dict[str, list[Any]] = {}
    for theirs in everyone:
        for name, gradient in theirs.items():
            if gradient is not None:
                found.setdefault(name, []).append(gradient.to_dense())
    kinds = {name: gradients[0].dtype for name, gradients in found.items()}
    exact = {name: torch.complex128 if kinds[name].is_complex else torch.float64 for name in kinds}
    return {
        name: (sum(each.to(exact[name]) for each in gradients) / comm.size).to(kinds[name])
        for name, gradients in found.items()
    }


def assert_close(found: dict[str, Any], expected: dict[str, Any], atol: float = 1e-6) -> None:
    for name, mean in expected.items():
        assert found[name] is not None, name
        torch.testing.assert_close(
            found[name].to_dense() if found[name].is_sparse else found[name],
            mean.to_dense() if mean.is_sparse else mean,
            rtol=1e-5,
            atol=atol,
            msg=lambda words, name=name: f"{name}: {words}",
        )


def raises(kind: type[Exception], words: str, act: Callable[[], Any]) -> str:
    try:
        act()
    except kind as error:
        assert words in str(error), str(error)
        assert "\n" not in str(error), str(error)
        return str(error)
    raise AssertionError(f"no {kind.__name__} says {words!r}")


# --- exactness ------------------------------------------------------------------------------------


def flat(sync: dls.torch.Sync, named: dict[str, Any]) -> np.ndarray:
    """Values by parameter as one vector, in the order of the exchange."""
    pieces = [named[each.name].reshape(-1) for each in sync.stepper.in_order()]
    return torch.cat(pieces).cpu().numpy()


class FromTorch(Recorded):
    """A model of the reference that gives a rank's recorded gradients."""

    def __init__(self, recorded: list[np.ndarray], offsets: np.ndarray) -> None:
        n = int(offsets[-1])
        self.recorded: Iterator[np.ndarray] = iter(recorded)
        self.offsets = offsets
        self.parameters, self.gradients = np.zeros(n, np.float32), np.zeros(n, np.float32)

    def backward(self, dlogits: np.ndarray, on_gradient: Callable[[int], None]) -> None:
        self.gradients[...] = next(self.recorded)


def exact(comm: Comm, method: str, steps: int = 5, **options: Any) -> None:
    """The mean and what stays have the bits of the reference, in every step."""
    model = net()
    sync = attach(model, comm, method, check_every=2, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    seen, recorded, first_k = [], [], None
    for step in range(steps):
        recorded.append(own_gradients(model, backward_of(comm.rank, step)))
        loss(model, comm.rank, step).backward()
        if first_k is None:
            first_k = sync.stepper.exchanger.state()["k"].copy()
        sync.wait()
        residual = np.array(sync.stepper.exchanger.state()["residual"])
        seen.append((flat(sync, grads(model)), residual))
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
    everyone = comm.allgather_objects([flat(sync, own) for own in recorded])
    layout, settings = sync.stepper.layout, sync.stepper.exchanger.method.settings
    assert first_k is not None
    if first_k.size != len(layout):
        first_k = methods.split_budget(int(first_k.sum()), layout.sizes)
    cluster = Cluster(
        [FromTorch(theirs, layout.offsets) for theirs in everyone],
        type(sync.stepper.exchanger.method).meaning(settings),
        first_k,
        value_dtype=settings.value_dtype,
        collective=settings.collective,
        buckets=[bucket.layers for bucket in sync.stepper.exchanger.buckets],
    )
    nothing = [(np.zeros((1, 1), np.float32), np.zeros(1, np.int64))] * comm.size
    budget = methods.budget(layout.n, settings.density)
    for step, (mean, residual) in enumerate(seen):
        cluster.step(nothing, 1.0, budget)
        assert mean.tobytes() == cluster.momentum.tobytes(), step
        assert residual.tobytes() == cluster.residuals[comm.rank].tobytes(), step
    sync.close()


@case
def dls_has_the_bits_of_the_reference(comm: Comm) -> None:
    exact(comm, "dls")


@case
def dls_without_a_reserve_has_them(comm: Comm) -> None:
    exact(comm, "dls", dls_reserve=0.0, dls_from="ahead")


@case
def global_topk_has_them(comm: Comm) -> None:
    exact(comm, "global-topk")


@case
def layerwise_topk_has_them(comm: Comm) -> None:
    exact(comm, "layerwise-topk", value_dtype="bfloat16")


@case
def gtopk_has_them(comm: Comm) -> None:
    exact(comm, "layerwise-topk", collective="gtopk")


@case
def density_one_is_the_dense_mean(comm: Comm) -> None:
    for method in ("dls", "dense", "global-topk"):
        model = net()
        sync = attach(model, comm, method, **({} if method == "dense" else {"density": 1.0}))
        for step in range(3):
            own = own_gradients(model, backward_of(comm.rank, step))
            expected = mean_of_ranks(comm, own)
            loss(model, comm.rank, step).backward()
            sync.wait()
            assert_close(grads(model), expected)
            model.zero_grad(set_to_none=step == 0)
        sync.close()


@case
def weights_that_differ_are_found(comm: Comm) -> None:
    model = net()
    sync = attach(model, comm, check_every=2)
    for step in range(2):
        loss(model, comm.rank, step).backward()
        sync.wait()
        if comm.rank == 1:
            with torch.no_grad():
                model[0].bias[0] += 1
    loss(model, comm.rank, 2).backward()
    words = raises(RuntimeError, "after step 2 the weights of rank 1 are not those of", sync.wait)
    assert ("most ranks" if comm.size > 2 else "rank 0") in words
    sync.close()


@case
def the_exchange_follows_the_stream_of_a_gpu(comm: Comm) -> None:
    """A backward pass in a stream of its own, which is late."""
    model, late = net(), torch.ones(2048, 2048)
    on_card = DEVICE.type == "cuda"
    for method in ("dense", "global-topk"):
        density = {} if method == "dense" else {"density": 1.0}
        sync = attach(model, comm, method, **density)
        with torch.cuda.stream(torch.cuda.Stream()) if on_card else nullcontext():
            for step in range(4):
                expected = mean_of_ranks(comm, own_gradients(model, backward_of(comm.rank, step)))
                for _ in range(50 if on_card else 0):
                    late = late @ late / 2048
                loss(model, comm.rank, step).backward()
                sync.wait()
                assert_close(grads(model), expected)
                model.zero_grad(set_to_none=step % 2 == 0)
            state = sync.state_dict()["values"].get("residual", {})
            assert not any(kept.any() for kept in state.values())
        sync.close()


@case
def messages_leave_during_the_backward_pass(comm: Comm) -> None:
    """From the second step on, in an order that the first step has found."""
    model = Backwards()
    sync = attach(model, comm, "layerwise-topk", bucket_size=1)
    before_wait = []
    for step in range(3):
        loss(model, comm.rank, step).backward()
        before_wait.append(len(sync.stepper.exchanger._flights))
        sync.wait()
    assert sync.stepper.order == ["first", "second", "last"]
    assert before_wait == [0, 3, 3]
    sync.close()


class Backwards(nn.Module):
    """Modules in another order than that in which they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.second = nn.Linear(5, 2), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        return self.last(self.second(self.first(x)))
