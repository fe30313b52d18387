"""What a rank must keep of the exchange, as tensors by the names of parameters and layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dls.torch.steps import Steps

FORMAT = "dls.torch/1"
"""The format of a rank's state."""
State = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]


def save(steps: Steps, method: str) -> State:
    """A rank's state.

    `values`: by name of what is kept, such as the residual, and of the parameter; `of_layers`: by
    name, such as k, and of the layer; `other`: as it is; `aside`: of frozen parameters, what they
    have not sent. `layers`: in the order in which the exchange has them.
    """
    state: State = {"format": FORMAT, "method": method, "steps": steps.finished}
    state |= {"rank": steps.comm.rank, "ranks": steps.comm.size, "agreed": steps.agreed}
    state |= {"layers": dict(zip(steps.order, steps.layout.sizes, strict=True))}
    state |= {"values": {}, "of_layers": {}, "other": {}}
    for name, array in steps.exchanger.state().items():
        tensor = torch.from_numpy(np.array(array))
        if array.shape == (steps.layout.n,):
            pieces = {each.name: steps.places[each.name] for each in steps.in_order()}
            state["values"][name] = {own: tensor[place].clone() for own, place in pieces.items()}
        elif array.shape == (len(steps.order),):
            state["of_layers"][name] = dict(zip(steps.order, tensor.tolist(), strict=True))
        else:
            state["other"][name] = tensor
    aside = {name: tensor.cpu().clone() for name, tensor in steps.aside.items()}
    return state | {"aside": aside}


def load(steps: Steps, state: Mapping[str, Any], method: str, strict: bool) -> None:
    """Go on from what `save` gave on this rank; every rank calls it, between two steps.

    strict: the model, the method and the number of ranks are those that it was saved with; else
    what belongs to parameters that are still there is taken over, and the rest begins anew.
    ValueError, on all ranks, where it is not such a state.
    """
    steps.comm.together(lambda: _check(steps, state, method, strict))
    same_layers = dict(state["layers"]) == dict(_layers(steps))
    order = list(state["layers"])
    if same_layers and state["agreed"]:
        if order != steps.order:
            steps.lay_out(order)
        steps.agreed = True
    arrays = {name: np.array(array) for name, array in steps.exchanger.state().items()}
    _fill_values(steps, state, arrays)
    if same_layers and state["method"] == method:
        for name, of_layers in state["of_layers"].items():
            arrays[name][...] = [of_layers[layer] for layer in steps.order]
        for name, tensor in state["other"].items():
            arrays[name][...] = tensor.numpy()
    steps.exchanger.restore(arrays)
    steps.take_aside(state["aside"])
    steps.finished = int(state["steps"])


def _layers(steps: Steps) -> list[tuple[str, int]]:
    return list(zip(steps.order, steps.layout.sizes, strict=True))


def _fill_values(steps: Steps, state: Mapping[str, Any], arrays: Arrays) -> None:
    sizes = {each.name: each.values for each in steps.parameters}
    for name, of_parameters in state["values"].items():
        for own, tensor in of_parameters.items():
            if name in arrays and sizes.get(own) == tensor.numel():
                arrays[name][steps.places[own]] = tensor.numpy()


def _check(steps: Steps, state: Mapping[str, Any], method: str, strict: bool) -> None:
    """ValueError where a state cannot be taken over."""
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise ValueError(f"this is no state of a sync: its format is not {FORMAT}")
    if not strict:
        return
    comm = steps.comm
    place = f"rank {comm.rank} of {comm.size}"
    saved = f"rank {state['rank']} of {state['ranks']}"
    _same("the rank", saved, place)
    _same("the method", state["method"], method)
    _same("the layers", sorted(state["layers"].items()), sorted(_layers(steps)))


def _same(what: str, saved: Any, here: Any) -> None:
    if saved == here:
        return
    if isinstance(saved, list):
        saved, here = next((a, b) for a, b in _pairs(saved, here) if a != b)
    raise ValueError(
        f"{what} of this state: {saved}, and here it is {here}; each rank has a state of its own"
        " (sync.save and sync.resume see to that, on another number of ranks too), and"
        " strict=False takes over what fits"
    )


def _pairs(one: list[Any], other: list[Any]) -> list[tuple[Any, Any]]:
    length = max(len(one), len(other))
    fill: Callable[[list[Any]], list[Any]] = lambda each: each + [None] * (length - len(each))  # noqa: E731
    return list(zip(fill(one), fill(other), strict=True))
