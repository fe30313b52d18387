"""The exchange of a model's gradients, step by step: what leaves when.

A parameter's hook tells that its gradient has grown. The first step observes: how often each
gradient grows in a step, and in which order the layers' become complete. Then rank 0's order
becomes that of all ranks. From the second step on a gradient leaves when it has grown as often as
in steps before; what has not left when the step ends leaves then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from dls.backends import Backend
from dls.comm.base import Comm
from dls.exchange.exchanger import Exchanger, Row
from dls.exchange.layout import Layout
from dls.exchange.methods import Method
from dls.torch.parameters import Tensor, Tracked, layers


class Steps:
    """A rank's steps. `finished`: how many; `order`: the names of the layers in the flat vector,
    the last of which leaves first.

    scale: where a GradScaler multiplies gradients, its present scale, asked at each step's begin.
    check: raises, before anything leaves, where a step cannot be taken. ValueError where the
    settings do not fit the model.
    """

    def __init__(
        self,
        parameters: Sequence[Tracked],
        method: type[Method],
        settings: Any,
        comm: Comm,
        backend: Backend,
        *,
        bucket_size: int,
        on_nan: str,
        overlap: bool = True,
        scale: Callable[[], float] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.parameters, self.comm, self.backend = parameters, comm, backend
        self._of_exchanger = (method, settings, comm, backend)
        self._options: dict[str, Any] = {"bucket_size": bucket_size, "on_nan": on_nan}
        self._overlap, self._ask_scale, self._scale = overlap, scale, 1.0
        self._check, self._skips = check, on_nan == "skip"
        self._phase = ExitStack()
        self.finished = 0
        self.agreed = False
        self._expected: list[int] | None = None
        self._fired = [0] * len(parameters)
        self._events: list[int] = []
        self._left: set[int] = set()
        self._missing: dict[str, int] = {}
        self.aside: dict[str, Tensor] = {}
        """What frozen parameters have not sent, by their names."""
        self.lay_out([layer.name for layer in layers(parameters)])

    # --- layout --------------------------------------------------------------------------------

    def lay_out(self, order: Sequence[str]) -> None:
        """Build the exchange for layers in this order; what an earlier one kept is lost."""
        self.order = list(order)
        self.layout = Layout(layers(self.parameters, self.order))
        method, settings, comm, backend = self._of_exchanger
        self.exchanger = Exchanger(self.layout, method, settings, comm, backend, **self._options)
        # A gradient is no longer needed when its mean arrives, so both have the same place.
        self.exchanger.gradients = self.exchanger.update
        self.flat = _as_tensor(self.exchanger.update)
        self._layer_number = {name: number for number, name in enumerate(self.order)}
        self._of_layer: dict[str, list[Tracked]] = {name: [] for name in self.order}
        for each in self.parameters:
            self._of_layer[each.layer].append(each)
        start = 0
        self.places: dict[str, slice] = {}
        for each in self.in_order():
            self.places[each.name] = place = slice(start, start + each.values)
            each.place(self.flat[place], self.exchanger.gradients[place])
            start += each.values

    def in_order(self) -> list[Tracked]:
        """The parameters as they lie in the flat vector."""
        return [each for name in self.order for each in self._of_layer[name]]

    def agree(self) -> None:
        """Take over rank 0's order, before the first step leaves; every rank calls it."""
        if self.agreed:
            return
        own = self._observed(), [each.name for each in self.parameters if each.is_sparse]
        everyone = self.comm.allgather_objects(own, "the order of the first step's gradients")
        order = everyone[0][0]
        sparse = {name for _, names in everyone for name in names}
        for each in self.parameters:
            each.sparse = each.name in sparse
        if order != self.order:
            self.lay_out(order)
        self.agreed = True

    def _observed(self) -> list[str]:
        """The layers from the last that became complete to the first; before them those that were
        not used.
        """
        completed = {
            self.parameters[number].layer: when for when, number in enumerate(self._events)
        }
        unused = [name for name in self.order if name not in completed]
        return unused + sorted(completed, key=lambda name: completed[name], reverse=True)

    # --- a step --------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether a step has begun and not ended."""
        return self.exchanger.is_open

    def begin(self) -> None:
        """Begin a step, where none is under way."""
        if self.begun:
            return
        try:
            self._check()
        except ValueError:
            self._forget()
            raise
        self._set_aside()
        self._scale = self._ask_scale() if self._ask_scale else 1.0
        self.enter("backward")
        self.exchanger.begin(self.finished)
        self._missing = {name: len(some) for name, some in self._of_layer.items()}

    def fired(self, number: int) -> None:
        """A parameter's gradient has grown. RuntimeError where it had left already."""
        self._fired[number] += 1
        self._events.append(number)
        if number in self._left:
            self.exchanger.close()
            raise RuntimeError(
                f"the gradient of {self.parameters[number].name} grew after it had been sent: let"
                " all backward passes of a step but the last run in `with sync.no_sync():`, or"
                " attach with overlap=False"
            )
        if not (self._overlap and self.agreed and self._expected):
            return
        if self._fired[number] == self._expected[number]:
            self.begin()
            self.leave(number, self.parameters[number].tensor.grad)

    def leave(self, number: int, gradient: Tensor) -> None:
        """A parameter's gradient is complete; it leaves with its layer."""
        each = self.parameters[number]
        if self.exchanger.takes_pieces and each.lies_ready(gradient):
            each.source = self.backend.ops.from_dlpack(gradient.detach().view(-1))
        else:
            each.read(gradient)
        if self._scale != 1:
            each.piece.div_(self._scale)
        self._left.add(number)
        self._missing[each.layer] -= 1
        if not self._missing[each.layer]:
            self._layer_leaves(each.layer)

    def _layer_leaves(self, name: str) -> None:
        """Each of its gradients is where it came, or in the flat vector."""
        pieces = [each.take_source() for each in self._of_layer[name]]
        number = self._layer_number[name]
        if self.exchanger.takes_pieces:
            self.exchanger.ready(number, pieces, in_place=True)
        else:
            self.exchanger.ready(number)

    def observe(self, numbers: Sequence[int]) -> None:
        """The first step's gradients became complete in this order."""
        self._events += numbers

    def leave_all(self) -> None:
        """What has not left leaves, as it is; what has no gradient counts as zero."""
        self.agree()
        self.begin()
        self.leave_rest(lambda tensor: tensor.grad)

    def leave_rest(self, gradient_of: Callable[[Tensor], Tensor] = lambda _: None) -> None:
        """What has not left leaves; unless told otherwise, as zeros."""
        numbers = {each.name: number for number, each in enumerate(self.parameters)}
        for each in reversed(self.in_order()):
            if numbers[each.name] not in self._left:
                self.leave(numbers[each.name], gradient_of(each.tensor))

    def end(self, record: bool = False) -> Row:
        """The step is over, and the mean is in its place: zeros, or with a GradScaler infinity,
        where it is left out by all ranks.
        """
        self.enter("")
        row = self.exchanger.end(record)
        if row.met_by:
            self.flat.fill_(float("inf") if self._ask_scale else 0.0)
        elif self._scale != 1:
            self.flat.mul_(self._scale)
        self.finished += 1
        before = self._expected or [0] * len(self.parameters)
        self._expected = [max(pair) for pair in zip(before, self._fired, strict=True)]
        self._forget()
        return row

    def _forget(self) -> None:
        """Nothing has fired in the step that comes."""
        self._fired = [0] * len(self.parameters)
        self._events.clear()
        self._left.clear()

    def enter(self, phase: str) -> None:
        """From now on the time is that of another phase; of none."""
        self._phase.close()
        if phase:
            self._phase.enter_context(self.exchanger.clock.phase(phase))

    def stop_clock(self) -> None:
        """The step's time is over."""
        self.exchanger.clock.stop()

    def start_clock(self, with_timeline: bool = False) -> None:
        """The next step begins, with the optimizer."""
        self._phase.close()
        self.exchanger.clock.restart(len(self.layout) if with_timeline else 0)
        self.enter("update")

    def hand_over(self) -> None:
        """Make the mean every parameter's `grad`."""
        for each in self.parameters:
            each.write()

    # --- frozen parameters ---------------------------------------------------------------------

    def take_aside(self, kept: Mapping[str, Tensor]) -> None:
        """Take over what an earlier sync's frozen parameters had not sent; parameters that are not
        here any more are left out.
        """
        sizes = {each.name: each.values for each in self.parameters}
        for name, values in kept.items():
            if sizes.get(name) == values.numel():
                self.aside[name] = values.to(self.flat.device).clone()

    def _set_aside(self) -> None:
        """What a frozen parameter has not sent stays on this rank until it is trained again."""
        memory = getattr(self.exchanger.method, "memory", None)
        if memory is None:
            return
        residual = _as_tensor(memory.v)
        for each in self.parameters:
            here = residual[self.places[each.name]]
            if each.frozen and each.name not in self.aside:
                self.aside[each.name] = here.clone()
                here.zero_()
            elif not each.frozen and each.name in self.aside:
                here.add_(self.aside.pop(each.name))


def _as_tensor(array: Any) -> Tensor:
    """A backend's array as a tensor, in the same memory."""
    return torch.from_dlpack(array)
