"""Cases in which a hook on each gradient and nothing more would be wrong."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from dls.comm.base import Comm
from dls.comm.errors import ExchangeError
from dls.torch.compiled import WORDS
from reference.ops import NonFiniteError
from tests.torch.cases import (
    BACKENDS,
    DEVICE,
    assert_close,
    attach,
    case,
    grads,
    inputs,
    loss,
    mean_of_ranks,
    net,
    own_gradients,
    raises,
    seeded,
)


class Branches(nn.Module):
    """Two branches, of which a step may use one, both or none."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(5):
            self.a, self.b = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x: Any, which: str) -> Any:
        return sum(getattr(self, name)(x).square().sum() for name in which)


def means(comm: Comm, model: Any, sync: Any, backward: Any, steps: int = 3) -> None:
    """In every step the dense mean of what `backward` gives on each rank alone."""
    for step in range(steps):
        act = lambda twin: backward(twin, step)  # noqa: B023, E731
        expected = mean_of_ranks(comm, own_gradients(model, act))
        backward(model, step)
        assert sync.wait()
        found = grads(model)
        assert_close(found, expected)
        assert all(gradient is not None for gradient in found.values())
        model.zero_grad(set_to_none=step % 2 == 0)
    sync.close()


@case
def a_parameter_that_one_rank_does_not_use_counts_as_zero(comm: Comm) -> None:
    def backward(model: Any, step: int) -> None:
        unused = comm.rank == comm.size - 1 and step % 2 == 1
        model(inputs(comm.rank, step), "a" if unused else "ab").backward()

    model = Branches()
    means(comm, model, attach(model, comm, "dense"), backward, steps=4)


@case
def a_rank_without_data_takes_part_with_zeros(comm: Comm) -> None:
    def backward(model: Any, step: int) -> None:
        if step != 2 or comm.rank == 0:
            loss(model, comm.rank, step).backward()

    model = net()
    means(comm, model, attach(model, comm, "dense"), backward, steps=4)


@case
def what_an_unused_parameter_holds_still_leaves(comm: Comm) -> None:
    model = Branches()
    sync = attach(model, comm, "layerwise-topk")
    act = lambda twin: twin(inputs(comm.rank, 0), "ab").backward()  # noqa: E731
    expected = mean_of_ranks(comm, own_gradients(model, act))
    arrived = torch.zeros(5, 6)
    for step in range(8):
        model(inputs(comm.rank, step), "a" if step else "ab").backward()
        sync.wait()
        arrived += model.b.weight.grad
        model.zero_grad()
    assert_close({"b.weight": arrived}, {"b.weight": expected["b.weight"]})
    sync.close()


@case
def a_frozen_parameter_keeps_what_it_has_not_sent(comm: Comm) -> None:
    model = Branches()
    sync = attach(model, comm, "layerwise-topk")
    act = lambda twin: twin(inputs(comm.rank, 0), "ab").backward()  # noqa: E731
    expected = mean_of_ranks(comm, own_gradients(model, act))
    arrived = torch.zeros(5, 6)
    for step in range(16):
        frozen = 1 <= step < 8
        model.b.requires_grad_(not frozen)
        model(inputs(comm.rank, step), "a" if step else "ab").backward()
        sync.wait()
        assert (model.b.weight.grad is None) == frozen, step
        if not frozen:
            arrived += model.b.weight.grad
        model.zero_grad()
    assert_close({"b.weight": arrived}, {"b.weight": expected["b.weight"]})
    sync.close()


@case
def a_gradient_is_read_where_pytorch_has_put_it(comm: Comm) -> None:
    """Until the mean comes, its place still holds the last one; where the gradient is not float32
    in one piece, or a method needs all in one vector, that is where it is copied to.
    """

    class Turned(nn.Module):
        """Its weight lies column by column, and so does the gradient."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 4).t())
            self.bias = nn.Parameter(torch.zeros(3))

    for method, copied in (("layerwise-topk", False), ("dls", False), ("dense", True)):
        model = Turned()
        sync = attach(model, comm, method, backend=BACKENDS[1])
        for step in range(3):
            before = sync.stepper.flat.clone()
            (model.bias + inputs(comm.rank, step, 5, 4) @ model.weight).square().sum().backward()
            assert not model.weight.grad.is_contiguous()
            weight, bias = (sync.stepper.places[name] for name in ("weight", "bias"))
            if step:  # the first step leaves in wait
                flat = sync.stepper.flat
                assert flat[weight].tolist() == model.weight.grad.reshape(-1).tolist()
                expected = model.bias.grad if copied else before[bias]
                assert flat[bias].tolist() == expected.tolist(), method
                assert copied or expected.tolist() != model.bias.grad.tolist()
            sync.wait()
            model.zero_grad()
        sync.close()


@case
def a_parameter_frozen_on_one_rank_is_named(comm: Comm) -> None:
    model = Branches()
    sync = attach(model, comm)
    model.b.requires_grad_(comm.rank != 1)
    model(inputs(comm.rank, 0), "ab").backward()
    raises(ValueError, "b.weight is frozen on rank 1, and is not on rank 0", sync.wait)
    sync.close()


@case
def a_parameter_added_later_is_refused_with_the_way_out(comm: Comm) -> None:
    model = net()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    sync = attach(model, comm, "layerwise-topk")
    loss(model, comm.rank, 0).backward()
    sync.wait()
    model.zero_grad()
    model[0].requires_grad_(True)
    words = "0.weight was not a trainable parameter when"
    raises(ValueError, words, loss(model, comm.rank, 1).backward)
    raises(ValueError, words, sync.wait)
    model.zero_grad()
    state = sync.state_dict()
    sync.close()
    again = attach(model, comm, "layerwise-topk")
    again.load_state_dict(state, strict=False)
    assert again.steps == 1
    residual = again.state_dict()["values"]["residual"]
    for name, kept in state["values"]["residual"].items():
        assert kept.any() or name.endswith("bias"), name
        assert torch.equal(residual[name], kept), name
    assert not residual["0.weight"].any()
    loss(model, comm.rank, 1).backward()
    again.wait()
    again.close()


@case
def a_replaced_module_is_refused(comm: Comm) -> None:
    model = net()
    sync = attach(model, comm)
    model[4] = nn.Linear(5, 4)
    loss(model, comm.rank, 0).backward()
    raises(ValueError, "4.weight was not a trainable parameter when", sync.wait)
    sync.close()


class Tied(nn.Module):
    """The same weight at the beginning and at the end."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        with seeded(6):
            self.embedding = nn.Embedding(11, 4, sparse=sparse)
            self.middle, self.out = nn.Linear(4, 4), nn.Linear(4, 11, bias=False)
        if not sparse:
            self.out.weight = self.embedding.weight

    def forward(self, tokens: Any) -> Any:
        return self.out(self.middle(self.embedding(tokens)))


def tokens(rank: int, step: int) -> Any:
    generator = torch.Generator("cpu").manual_seed(1000 * rank + step)
    return torch.randint(0, 11, (7,), generator=generator, device="cpu").to(DEVICE)


@case
def tied_weights_are_one_parameter(comm: Comm) -> None:
    def backward(model: Any, step: int) -> None:
        model(tokens(comm.rank, step)).square().sum().backward()

    model = Tied()
    sync = attach(model, comm, "dense")
    assert [each.name for each in sync.parameters] == [
        "embedding.weight",
        "middle.weight",
        "middle.bias",
    ]
    means(comm, model, sync, backward)


@case
def a_sparse_gradient_stays_sparse(comm: Comm) -> None:
    """On all ranks, also where one has not used it."""

    def backward(model: Any, step: int) -> None:
        if step != 1 or comm.rank == 0:
            model(tokens(comm.rank, step)).square().sum().backward()

    model = Tied(sparse=True)
    means(comm, model, attach(model, comm, "dense"), backward)
    sync = attach(model, comm, "layerwise-topk", density=0.5)
    rows = torch.optim.SparseAdam([model.embedding.weight])
    rest = torch.optim.SGD([*model.middle.parameters(), *model.out.parameters()], lr=0.1)
    for step in range(3):
        backward(model, step)
        sync.wait()
        assert model.embedding.weight.grad.is_sparse
        rows.step()
        rest.step()
        model.zero_grad()
    assert alike(comm, model)
    sync.close()


def alike(comm: Comm, model: Any) -> bool:
    """Whether all ranks have the same weights."""
    own = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).cpu().numpy().tobytes()
    return len(set(comm.allgather_objects(own))) == 1


@case
def a_sparse_gradient_of_a_function_is_known_to_all_ranks(comm: Comm) -> None:
    class Function(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.ones(11, 4))
            self.out = nn.Linear(4, 2)

        def forward(self, tokens: Any) -> Any:
            return self.out(F.embedding(tokens, self.table, sparse=True))

    def backward(model: Any, step: int) -> None:
        if comm.rank == 1:
            model(tokens(comm.rank, step)).square().sum().backward()
        else:
            model.out(torch.ones(1, 4)).sum().backward()

    model = Function()
    sync = attach(model, comm, "dense")
    for step in range(2):
        backward(model, step)
        sync.wait()
        assert model.table.grad.is_sparse, step
        model.zero_grad()
    means(comm, model, sync, backward)


class Checkpointed(nn.Module):
    """Activation checkpointing; the inner block is used twice."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.inner, self.last = net(1), nn.Linear(4, 4), nn.Linear(4, 2)
        with seeded(8):
            for parameter in [*self.inner.parameters(), *self.last.parameters()]:
                nn.init.normal_(parameter)
        self.reentrant = reentrant

    def forward(self, x: Any) -> Any:
        for block in (self.first, self.inner, self.inner):
            if self.reentrant is None:
                x = block(x)
            else:
                x = checkpoint(block, x.requires_grad_(), use_reentrant=self.reentrant)
        return self.last(x)


@case
def checkpointed_activations_give_the_same_mean(comm: Comm) -> None:
    def plain(step: int) -> dict[str, Any]:
        model = Checkpointed(None)
        loss(model, comm.rank, step).backward()
        return mean_of_ranks(comm, grads(model))

    for reentrant in (False, True):
        model = Checkpointed(reentrant)
        sync = attach(model, comm, "dense", bucket_size=1)
        for step in range(3):
            loss(model, comm.rank, step).backward()
            sync.wait()
            assert_close(grads(model), plain(step))
            model.zero_grad()
        sync.close()


@case
def several_backward_passes_of_every_step_add_up(comm: Comm) -> None:
    """Also of one graph; the first step finds out how many there are."""

    def backward(model: Any, step: int) -> None:
        one = loss(model, comm.rank, step)
        one.backward(retain_graph=True)
        one.backward()
        loss(model, comm.rank, step + 50).backward()

    model = net()
    means(comm, model, attach(model, comm, "dense", bucket_size=1), backward, steps=4)


@case
def a_gradient_that_grows_after_it_was_sent_is_refused(comm: Comm) -> None:
    def backward(model: Any, step: int) -> None:
        for _ in range(step + 1):
            loss(model, comm.rank, step).backward()

    model = net()
    sync = attach(model, comm, "dense")
    backward(model, 0)
    sync.wait()
    words = "4.bias grew after it had been sent: let all backward passes"
    message = raises(RuntimeError, words, lambda: backward(model, 1))
    assert "no_sync" in message
    raises(RuntimeError, "closed", sync.wait)
    sync.close()
    model.zero_grad()
    means(comm, model, attach(model, comm, "dense", overlap=False), backward)


@case
def no_sync_adds_up_and_sends_nothing(comm: Comm) -> None:
    def backward(model: Any, step: int) -> None:
        for part in range(step + 2):
            loss(model, comm.rank, 10 * step + part).backward()

    def held(model: Any, step: int) -> None:
        with sync.no_sync():
            for part in range(step + 1):
                loss(model, comm.rank, 10 * step + part).backward()
            raises(ValueError, "outside of no_sync", sync.wait)
        assert not sync.stepper.begun
        loss(model, comm.rank, 10 * step + step + 1).backward()
        assert sync.stepper.begun == (step > 0)

    model = net()
    sync = attach(model, comm, "dense", bucket_size=1)
    for step in range(3):
        act = lambda twin: backward(twin, step)  # noqa: B023, E731
        expected = mean_of_ranks(comm, own_gradients(model, act))
        held(model, step)
        sync.wait()
        assert_close(grads(model), expected)
        model.zero_grad(set_to_none=step == 0)
    sync.close()


class Kinds(nn.Module):
    """A parameter of each floating type, whose gradients are whole numbers."""

    TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    COMPLEX = (torch.complex64, torch.complex128)

    def __init__(self) -> None:
        super().__init__()
        self.real = nn.ParameterList([torch.zeros(3, 4, dtype=kind) for kind in self.TYPES])
        self.complex = nn.ParameterList([torch.zeros(5, dtype=kind) for kind in self.COMPLEX])

    def forward(self, factor: int) -> Any:
        weights = torch.arange(12.0).view(3, 4) * factor
        total = sum((p.double() * weights).sum() for p in self.real)
        turned = torch.arange(5.0) * factor * (1 + 2j)
        return total + sum((p.to(torch.complex128) * turned).real.sum() for p in self.complex)


@case
def every_floating_type_and_complex_numbers(comm: Comm) -> None:
    def backward(model: Any, step: int) -> None:
        model(comm.size * (comm.rank + step + 1)).backward()

    model = Kinds()
    means(comm, model, attach(model, comm, "dense"), backward)


@case
def a_half_gradient_s_residual_is_not_rounded(comm: Comm) -> None:
    """2048 + 1 is 2048 in float16."""
    model = nn.Linear(4, 2, bias=False).half()
    sync = attach(model, comm, "global-topk", density=1 / 8)
    for step in range(9):
        gradient = torch.zeros(2, 4)
        if step < 2:
            gradient[0, 0], gradient[0, 1] = 60_000 * (1 - step), (2048, 1)[step]
        (model.weight.float() * gradient).sum().backward()
        sync.wait()
        if step == 1:
            assert float(model.weight.grad[0, 1]) in (2048.0, 2050.0)
            everything = sync.stepper.flat[1].item()
            assert everything == 2049.0
        model.zero_grad()
    sync.close()


@case
def gradients_that_do_not_lie_in_order(comm: Comm) -> None:
    def backward(model: Any, step: int) -> None:
        model(inputs(comm.rank, step, 2, 3, 5, 5)).square().sum().backward()

    with seeded(2):
        model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    model = model.to(memory_format=torch.channels_last)
    means(comm, model, attach(model, comm, "dense"), backward)


@case
def a_compiled_model_works_and_it_is_said_once(comm: Comm) -> None:
    for inside in (False, True):
        model: Any = net()
        sync = attach(model, comm, "dense")
        called = model
        if inside:
            model.compile(backend="aot_eager")
        else:
            called = torch.compile(model, backend="aot_eager")
        said = []
        for step in range(3):
            expected = mean_of_ranks(comm, plain_gradients(comm, step))
            loss(called, comm.rank, step).backward()
            said += said_meanwhile(sync.wait) if comm.rank == 0 else [sync.wait()][1:]
            assert_close(grads(model), expected)
            model.zero_grad()
        comm.allgather_objects(None)
        assert said.count(WORDS) == (comm.rank == 0), said
        sync.close()


def said_meanwhile(act: Callable[[], Any]) -> list[str]:
    """The warnings of one rank: workers of one process share what collects them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(each.message) for each in caught]


def plain_gradients(comm: Comm, step: int) -> dict[str, Any]:
    model = net()
    loss(model, comm.rank, step).backward()
    return grads(model)


@case
def two_models_with_two_optimizers(comm: Comm) -> None:
    """Their backward passes mix; where each has a communicator, also differently on each rank."""
    models = [net(1), net(2)]
    apart = comm.library.startswith("one process")
    syncs = [attach(model, comm if apart else None, "dense", bucket_size=1) for model in models]  # type: ignore[arg-type]
    optimizers = [torch.optim.SGD(models[0].parameters(), lr=0.1)]
    optimizers.append(torch.optim.Adam(models[1].parameters()))
    for step in range(4):
        order = [0, 1] if apart or (comm.rank + step) % 2 else [1, 0]
        for number in order:
            loss(models[number], comm.rank, step).backward()
        for sync in syncs:
            sync.wait()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert all(alike(comm, model) for model in models)
    for sync in syncs:
        sync.close()


@case
def an_optimizer_can_call_wait(comm: Comm) -> None:
    """Where the loop is a library's."""
    models = net(), net()
    syncs = [attach(model, comm) for model in models]
    optimizers = [torch.optim.Adam(model.parameters()) for model in models]
    optimizers[1].register_step_pre_hook(lambda *_: [syncs[1].wait()].clear())
    for step in range(3):
        for model in models:
            loss(model, comm.rank, step).backward()
        syncs[0].wait()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    for sync in syncs:
        sync.close()


@case
def gradients_with_a_graph_are_sent_as_they_are(comm: Comm) -> None:
    def backward(model: Any, step: int) -> None:
        loss(model, comm.rank, step).backward(create_graph=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a cycle, which zero_grad breaks
        model = net()
        means(comm, model, attach(model, comm, "dense"), backward)


@case
def clipping_after_wait_clips_the_mean(comm: Comm) -> None:
    model = net()
    sync = attach(model, comm, "dense")
    for step in range(2):
        act = lambda twin: loss(twin, comm.rank, step).backward()  # noqa: B023, E731
        expected = mean_of_ranks(comm, own_gradients(model, act))
        norm = torch.stack([mean.norm() for mean in expected.values()]).norm()
        loss(model, comm.rank, step).backward()
        sync.wait()
        found = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        torch.testing.assert_close(found, norm)
        assert_close(grads(model), {name: each * 0.1 / norm for name, each in expected.items()})
        model.zero_grad()
    sync.close()


@case
def ranks_whose_models_differ_are_named(comm: Comm) -> None:
    def words(model: Any, expected: str, **options: Any) -> None:
        raises(ValueError, expected, lambda: attach(model, comm, **options))

    shapes = {True: nn.Linear(6, 5), False: nn.Linear(6, 4)}
    words(
        shapes[comm.rank == 1],
        "rank 1 differs from rank 0 in parameter number 0: weight (5, 6) float32 instead of"
        " weight (4, 6) float32",
    )
    one, other = nn.Linear(6, 4), nn.Linear(4, 6)
    names = ("x", "y") if comm.rank != 1 else ("y", "x")
    words(
        nn.ModuleDict(dict(zip(names, (one, other), strict=True))),
        "rank 1 differs from rank 0 in parameter number 0: y.weight (4, 6) float32 instead of"
        " x.weight (4, 6) float32",
    )
    more = nn.Sequential(*[nn.Linear(3, 3)] + [nn.Linear(3, 3)] * (comm.rank == 1))
    words(more, "in parameter number 2: 1.weight (3, 3) float32 instead of none")
    words(net().to(torch.float64 if comm.rank else torch.float32), "0.weight (8, 6) float64")
    words(net(), "rank 1 differs from rank 0 in settings", density=0.3 if comm.rank else 0.2)


class Normed(nn.Module):
    """With running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = net(), nn.BatchNorm1d(4)

    def forward(self, x: Any) -> Any:
        return self.norm(self.body(x))


@case
def running_statistics(comm: Comm) -> None:
    for kind in ("mean", "rank0", "local"):
        model = Normed()
        sync = attach(model, comm, buffers=kind)
        for step in range(2):
            twin = copy.deepcopy(model)
            twin(inputs(comm.rank, step))
            everyone = comm.allgather_objects(twin.norm.running_mean.cpu().numpy())
            loss(model, comm.rank, step).backward()
            sync.wait()
            found = model.norm.running_mean.cpu()
            expected = {"mean": np.mean(everyone, axis=0), "rank0": everyone[0]}
            expected["local"] = everyone[comm.rank]
            torch.testing.assert_close(found, torch.from_numpy(expected[kind]))
            assert int(model.norm.num_batches_tracked) == step + 1
            bits = {each.tobytes() for each in comm.allgather_objects(found.numpy())}
            assert len(bits) == (comm.size if kind == "local" else 1)
            model.zero_grad()
        sync.close()
    raises(ValueError, "buffers is 'all'", lambda: attach(net(), comm, buffers="all"))


@case
def the_first_weights_are_rank_0_s(comm: Comm) -> None:
    def different() -> Any:
        model = nn.Sequential(Normed(), nn.Linear(4, 3).bfloat16())
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.fill_(comm.rank + 1)
        return model

    for broadcast in (True, False):
        model = different()
        sync = attach(model, comm, broadcast=broadcast)
        expected = 1 if broadcast else comm.rank + 1
        assert all((p == expected).all() for p in [*model.parameters(), *model.buffers()])
        sync.close()


def scaled_steps(comm: Comm, scaler: Any, bad: int = -1) -> tuple[list[Any], Any, Any]:
    """Means in true units, the model and its sync; in step `bad` the last rank meets infinity, and
    it is taken once more.
    """
    model = net()
    sync = attach(model, comm, "dls", scaler=scaler if scaler.is_enabled() else None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    seen = []
    for step in (0, 1, 2, 2, 3, 4) if bad >= 0 else range(5):
        value = loss(model, comm.rank, step)
        infinite = step == bad and comm.rank == comm.size - 1
        scaler.scale(value * float("inf") if infinite else value).backward()
        finite = sync.wait()
        assert finite == (step != bad), step
        scaler.unscale_(optimizer)
        if finite:
            seen.append({name: mean.cpu().numpy() for name, mean in grads(model).items()})
        else:
            bad = -1
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return seen, model, sync


@case
def a_scaled_loss_gives_the_bits_of_a_plain_one(comm: Comm) -> None:
    """The scale changes on the way, and infinity on one rank skips a step on all of them."""
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=1024.0, growth_interval=2)
    seen, model, sync = scaled_steps(comm, scaler, bad=2)
    plain, other, beside = scaled_steps(comm, torch.amp.GradScaler(DEVICE.type, enabled=False))
    for step, (one, two) in enumerate(zip(seen, plain, strict=True)):
        assert all(np.array_equal(one[name], two[name]) for name in one), step
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))  # noqa: B905
    states = [each.stepper.exchanger.state() for each in (sync, beside)]
    assert np.array_equal(states[0]["residual"], states[1]["residual"])
    assert np.array_equal(states[0]["k"], states[1]["k"])
    assert scaler.get_scale() == 2048.0  # 1024, doubled twice and halved once
    sync.close()
    beside.close()


@case
def a_step_with_nan_is_left_out_by_all(comm: Comm) -> None:
    model = net()
    sync = attach(model, comm, on_nan="skip")
    for step in range(3):
        before = np.array(sync.stepper.exchanger.state()["residual"])
        value = loss(model, comm.rank, step)
        (value * float("nan") if step == 1 and comm.rank == 1 else value).backward()
        assert sync.wait() == (step != 1)
        assert all((p.grad is None) == (step == 1) for p in model.parameters())
        after = np.array(sync.stepper.exchanger.state()["residual"])
        assert np.array_equal(before, after) == (step == 1)
        model.zero_grad()
    sync.close()


@case
def nan_everywhere_stops_every_rank(comm: Comm) -> None:
    model = net()
    sync = attach(model, comm)
    (loss(model, comm.rank, 0) * float("nan")).backward()
    raises(NonFiniteError, "NaN or infinity in the gradient of layer 4", sync.wait)
    raises(RuntimeError, "closed", sync.wait)
    sync.close()


@case
def what_cannot_be_attached(comm: Comm) -> None:
    def words(model: Any, expected: str, **options: Any) -> None:
        raises(ValueError, expected, lambda: attach(model, comm, **options))

    words(nn.ReLU(), "the model has no trainable parameter")
    words(nn.LazyLinear(3), "parameter weight has no shape yet: call the model once")
    words(net(), "there is no method 'topk'", method="topk")
    words(net(), "there is no setting 'densty'", densty=0.1)
    words(net(), "rounds to no value", density=0.0001)
    words(net(), "bucket_size is 0", bucket_size=0)
    words(net(), "check_every is -1", check_every=-1)
    words(net(), "timeout is 0", timeout=0)
    words(net(), "on_nan is 'ignore'", on_nan="ignore")
    model = net()
    sync = attach(model, comm)
    words(model, "0.weight is attached already: close that sync first")
    sync.close()
    sync.close()
    raises(RuntimeError, "this sync is closed", sync.wait)
    with attach(model, comm):
        pass
    loss(model, comm.rank, 0).backward()  # no hook is left


@case
def no_rank_waits_for_ever_where_another_raised(comm: Comm) -> None:
    """The last case on ranks: what is under way never ends."""
    on_ranks = not comm.library.startswith("one process")
    model = net()
    sync = attach(model, None if on_ranks else comm, "dense", timeout=2.0)  # type: ignore[arg-type]
    loss(model, comm.rank, 0).backward()
    if comm.rank == 1:
        return
    words = "no word from rank 1" if on_ranks else "every worker waits"
    raises(ExchangeError, words, sync.wait)
