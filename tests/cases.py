"""Every method with its settings, found by listing them: what the tests of exchanges go through.

There is no list to keep: `dls.exchange.methods.names()` knows the methods, files and registered
classes alike, and each method's `Settings` knows its values, the collectives among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np

from dls import backends
from dls.comm.base import Comm
from dls.comm.lanes import MOST
from dls.exchange import methods
from dls.exchange.exchanger import Exchanger
from dls.exchange.layout import Layer, Layout
from dls.exchange.settings import CountOrOptimal, Field, build, fields_of, flag, show
from reference import collectives
from tests.pairwise import pairwise

COUNTS = (0, 1, 3)
NUMBERS = (0.0, 0.3, 1.0)
"""Of a number those are tried that are in its range, and its default."""
Values = tuple[tuple[str, Any], ...]


def values_of(its_field: Field, kind: Any) -> list[Any]:
    """The values of a setting that are tried: all choices, or a few that are allowed."""
    choices, allowed = its_field.metadata["choices"], its_field.metadata["allowed"]
    if choices is not None:
        return list(choices())
    if kind is bool:
        return [False, True]
    numbers: Sequence[Any] = {int: COUNTS, CountOrOptimal: COUNTS, float: NUMBERS}.get(kind, ())
    inside = [number for number in numbers if allowed is None or allowed.holds(number)]
    optimal = ["optimal"] if kind == CountOrOptimal else []
    return list(dict.fromkeys([its_field.default, *inside, *optimal]))


def settings_of(name: str) -> dict[str, list[Any]]:
    """A method's settings, by name, each with the values that are tried."""
    fields = fields_of(methods.load(name).Settings)
    return {key: values_of(*of_field) for key, of_field in fields.items()}


def meetings(name: str, *others: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """A method's settings, as `Values`, and a value of each of other factors.

    Every two values of two of them meet.
    """
    settings = settings_of(name)
    for case in pairwise(*settings.values(), *others):
        yield tuple(zip(settings, case, strict=False)), *case[len(settings) :]


def by_collective(name: str) -> list[Values]:
    """A method with each collective that it knows, everything else as it is by default."""
    carried = settings_of(name).get("collective")
    return [(("collective", each),) for each in carried] if carried else [()]


def flags(name: str, values: Values) -> str:
    """A method and its settings, as they stand on a command line."""
    words = [f"--method {name}"]
    for key, value in values:
        if isinstance(value, bool):
            words.append(flag(key) if value else flag(f"no_{key}"))
        else:
            words.append(f"{flag(key)} {show(value)}")
    return " ".join(words)


@dataclass(frozen=True)
class Case:
    """A method with its settings, and how its exchange is run.

    sizes (L): of the layers; whole: gradients are small whole numbers, whose sums are exact.
    """

    method: str
    values: Values
    sizes: tuple[int, ...] = (3, 64, 2, 1, 30)
    bucket_size: int = 16
    overlap: bool = True
    on_nan: str = "stop"
    whole: bool = True

    @cached_property
    def kind(self) -> type[methods.Method]:
        """The method's class."""
        return methods.load(self.method)

    @cached_property
    def settings(self) -> Any:
        """An instance of its Settings."""
        return build(self.kind.Settings, dict(self.values))

    @cached_property
    def layout(self) -> Layout:
        """A chain of layers, as the theory of gradient variances wants it."""
        return Layout([Layer(f"l{i}", n, channels=(i + 2, 3)) for i, n in enumerate(self.sizes)])

    @cached_property
    def buckets(self) -> list[range]:
        """The layers that travel together."""
        return [each.layers for each in self.layout.buckets(self.bucket_size, self.kind.whole)]

    @property
    def collective(self) -> str:
        """How what is sent is summed, where the method lets one choose."""
        return getattr(self.settings, "collective", next(iter(collectives.COLLECTIVES)))

    @property
    def fits(self) -> bool:
        """Whether the method takes these settings on these layers."""
        try:
            alone = self.layout, self.settings, collectives.Net(0, 1), backends.load("numpy")
            self.kind(*alone, self.layout.buckets(self.bucket_size, self.kind.whole))
        except ValueError:
            return False
        return True

    def exchanger(self, comm: Comm) -> Exchanger:
        """One rank's."""
        return Exchanger(
            self.layout,
            self.kind,
            self.settings,
            comm,
            backends.load("numpy"),
            bucket_size=self.bucket_size,
            overlap=self.overlap,
            on_nan=self.on_nan,
        )

    def gradient(self, rank: int, step: int) -> np.ndarray:
        """A rank's gradient (n)."""
        return _gradient(self.sizes, self.whole, rank, step).copy()

    def __str__(self) -> str:
        values = "-".join(show(value) for _, value in self.values)
        way = f"{len(self.sizes)}x{self.bucket_size}{'o' if self.overlap else ''}-{self.on_nan}"
        return f"{self.method}-{values}-{way}-{'whole' if self.whole else 'normal'}"


@cache
def _gradient(sizes: Sequence[int], whole: bool, rank: int, step: int) -> np.ndarray:
    """Layers of different scale; where they are whole numbers, some are all zeros."""
    random = np.random.default_rng([rank, step, len(sizes)])
    layers = []
    for number, size in enumerate(sizes):
        silent = len(sizes) > 1 and (number + rank + step) % len(sizes) == 0
        few = random.integers(-3, 4, size) * (1 + number % 3) * (not silent)
        layers.append(few if whole else random.normal(size=size) * 1.7**number)
    return np.concatenate(layers).astype(np.float32)


SIZES = ((3, 64, 2, 1, 30), (25, 25, 25, 25), (90, 1, 1, 20))
MANY = (2,) * MOST + (1, 9)
"""More layers, and so buckets, than there are lanes for them."""
BUCKET_SIZES = (1, 16, 0, 65_536)
"""0: all at once."""
BOTH = (True, False)


def of(name: str) -> list[Case]:
    """A method's cases: any two values of its settings, and of the ways to run it, meet."""
    met = meetings(name, SIZES, BUCKET_SIZES, BOTH, ("stop", "skip"), BOTH)
    return [Case(name, *each) for each in met]


def every() -> list[Case]:
    """All methods' cases."""
    return [case for name in methods.names() for case in of(name)]


def corners() -> list[Case]:
    """Those that fit one layer, or one value; and each collective on very many layers."""
    cases = [replace(case, sizes=sizes) for case in every() for sizes in ((1,), (7,))]
    by_name = [(name, values) for name in methods.names() for values in by_collective(name)]
    many = [Case(name, values, MANY, bucket_size=1) for name, values in by_name]
    return [case for case in dict.fromkeys([*cases, *many]) if case.fits]
