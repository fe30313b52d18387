"""Which methods, densities and collectives are compared: all that exist, unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from dls.exchange import methods
from dls.exchange.settings import fields_of
from dls.predict.forecast import Choice
from dls.predict.recording import settings_of

DENSITIES = (0.01, 0.001)
"""Densities that are compared beside the run's own."""


@dataclass(frozen=True)
class Wanted:
    """What is to be compared. densities, value_dtype, bucket_size: None for the run's own."""

    methods: Sequence[str]
    densities: Sequence[float] | None
    collectives: Sequence[str]
    value_dtype: str | None
    bucket_size: int | None


def choices(recorded: Choice, config: Mapping[str, Any], wanted: Wanted) -> list[Choice]:
    """Every method with every density and collective, as far as it knows these, without
    repetition.
    """
    bucket_size = recorded.bucket_size if wanted.bucket_size is None else wanted.bucket_size
    found: list[Choice] = []
    for name in wanted.methods:
        own = _own(name, recorded, config)
        choice = Choice(name, own, bucket_size)
        if wanted.value_dtype is not None:
            choice = choice.with_settings(value_dtype=wanted.value_dtype)
        found += _variants(choice, wanted)
    return list(dict.fromkeys(found))


def _own(name: str, recorded: Choice, config: Mapping[str, Any]) -> Any:
    """A method's settings: those of the run, as far as it has them; the density warm-up is over."""
    own = recorded.settings if name == recorded.method else None
    settings = settings_of(methods.load(name), config) if own is None else own
    return Choice(name, settings, 0).with_settings(density_warmup=0).settings


def _variants(choice: Choice, wanted: Wanted) -> Iterator[Choice]:
    known = fields_of(type(choice.settings))
    own = [choice.density, *DENSITIES] if wanted.densities is None else wanted.densities
    densities = own if "density" in known else [1.0]
    collectives = wanted.collectives if "collective" in known else [""]
    for density, collective in product(dict.fromkeys(densities), collectives):
        yield choice.with_settings(density=density, collective=collective)
