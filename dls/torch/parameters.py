"""A model's parameters as the exchange sees them: pieces of one flat float32 vector.

A gradient that lies in one piece of float32 is read where PyTorch left it, as far as the method
can; any other is copied to the place where, after the exchange, the mean lies. Where it can, the
mean becomes `grad` without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dls.exchange.layout import Layer

Tensor = Any
"""A torch.Tensor: PyTorch's own types are not read."""


@dataclass
class Tracked:
    """A trainable parameter, its name in the model, and the layer that it is part of.

    sparse: its gradient comes as a sparse tensor, and so does the mean. piece (values): its place
    in the flat vector, once that is laid out. source (values): where its gradient is to be read, if
    that is not its place, as the backend's array.
    """

    name: str
    tensor: Tensor
    layer: str
    sparse: bool = False
    piece: Tensor = field(default=None, repr=False)
    source: Any = field(default=None, repr=False)
    _array: Any = field(default=None, repr=False)
    _view: Tensor = field(default=None, repr=False)

    @property
    def values(self) -> int:
        """How many float32 values its gradient has; a complex number is two."""
        return int(self.tensor.numel()) * (2 if self.tensor.is_complex() else 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of its values."""
        return (*self.tensor.shape, 2) if self.tensor.is_complex() else tuple(self.tensor.shape)

    @property
    def frozen(self) -> bool:
        """Whether it is not trained at present."""
        return not self.tensor.requires_grad

    @property
    def is_sparse(self) -> bool:
        """Whether its gradient is known to come as a sparse tensor, or has just come as one."""
        gradient = self.tensor.grad
        return self.sparse or (gradient is not None and bool(gradient.is_sparse))

    def describe(self) -> str:
        """Its name, shape and type, for ranks to compare."""
        kind = str(self.tensor.dtype).removeprefix("torch.")
        return f"{self.name} {tuple(self.tensor.shape)} {kind}"

    def place(self, piece: Tensor, array: Any) -> None:
        """Its mean lies here from now on, and its gradient, unless that is read where it came.

        array: the same memory as the backend's array.
        """
        self.piece, self._array = piece, array
        plain = self.tensor.dtype == torch.float32 and self.tensor.layout == torch.strided
        here = self.tensor.device == piece.device and self.tensor.is_contiguous()
        self._view = piece.view(self.shape) if plain and here else None

    def lies_ready(self, gradient: Tensor) -> bool:
        """Whether a gradient can be read where it lies."""
        return (
            type(gradient) is torch.Tensor
            and not self.frozen
            and gradient.layout == torch.strided
            and gradient.dtype == self.piece.dtype
            and gradient.device == self.piece.device
            and gradient.is_contiguous()
            and not gradient.is_neg()
        )

    def take_source(self) -> Any:
        """Where to read its gradient in this step, as the backend's array."""
        source, self.source = self.source, None
        return self._array if source is None else source

    def read(self, gradient: Tensor) -> None:
        """Bring a gradient to its place, as float32; None is a gradient of zeros."""
        if gradient is None or self.frozen:
            self.piece.zero_()
            return
        values = gradient.detach()
        if values.layout != torch.strided:
            self.sparse = True
            values = values.to_dense()
        if values.is_complex():
            values = torch.view_as_real(values.resolve_conj())
        if not _same(values, self.piece):
            self.piece.view(self.shape).copy_(values)

    def write(self) -> None:
        """Make what lies in its place the parameter's `grad`, in the parameter's own type."""
        if self.frozen:
            self.tensor.grad = None
        elif self.sparse:
            self.tensor.grad = self._dense().to_sparse(1)
        elif self._view is not None:
            self.tensor.grad = self._view
        else:
            self.tensor.grad = self._dense(self.tensor.grad)

    def _dense(self, target: Tensor = None) -> Tensor:
        """A copy of what lies in its place, in `target` if that is of use."""
        fits = target is not None and target.layout == torch.strided
        result = target.detach() if fits else torch.empty_like(self.tensor.detach())
        values = torch.view_as_real(result) if result.is_complex() else result
        values.copy_(self.piece.view(self.shape))
        return result


def _same(values: Tensor, piece: Tensor) -> bool:
    """Whether they are the same memory, in the same order and type."""
    alike = values.dtype == piece.dtype and values.device == piece.device
    return bool(alike and values.is_contiguous() and values.data_ptr() == piece.data_ptr())


def tracked(model: Tensor) -> list[Tracked]:
    """The trainable parameters, in the order of the modules; one that is shared comes once.

    ValueError where there are none, or where one has no shape yet.
    """
    found: list[Tracked] = []
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for own_name, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{own_name}" if module_name else own_name
            if isinstance(parameter, torch.nn.parameter.UninitializedParameter):
                words = "has no shape yet: call the model once, then attach"
                raise ValueError(f"parameter {name} {words}")
            if id(parameter) in seen or not parameter.requires_grad or not parameter.numel():
                continue
            seen.add(id(parameter))
            sparse = bool(getattr(module, "sparse", False)) and own_name == "weight"
            found.append(Tracked(name, parameter, module_name or own_name, sparse))
    if not found:
        raise ValueError("the model has no trainable parameter")
    return found


def newcomers(model: Tensor, known: Sequence[Tracked]) -> Iterator[str]:
    """The names of trainable parameters that are not among the known ones."""
    ids = {id(each.tensor) for each in known}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in ids and parameter.numel():
            yield name


def layers(parameters: Sequence[Tracked], order: Sequence[str] = ()) -> list[Layer]:
    """The layers with their sizes, in this order; unless given, that of the parameters."""
    sizes: dict[str, int] = {}
    for each in parameters:
        sizes[each.layer] = sizes.get(each.layer, 0) + each.values
    return [Layer(name, sizes[name]) for name in order or sizes]
