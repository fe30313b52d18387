"""The settings of a run: each with its name, type, default, unit, allowed values and text.

A setting's value comes from its default, the resumed run, a TOML file or a flag; in this order a
later source overrides an earlier one. The command line is in `flags`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from dls import backends
from dls.cli import UsageError, near
from dls.exchange import methods
from dls.exchange.settings import (
    COUNT,
    METHOD_GROUP,
    NOT_NEGATIVE,
    POSITIVE,
    Field,
    Integers,
    Range,
    SettingError,
    UnknownChoice,
    fields_of,
    parse,
    setting,
)
from dls.program import aliases
from dls.tasks import data, models

DATA = "model and data"
"""A group of settings in help and documentation."""
OPTIMIZER = "optimizer"
"""A group of settings."""
EXCHANGE = "exchange"
"""A group of settings."""
RUN = "run"
"""A group of settings."""
FAULTS = "faults"
"""A group of settings."""
GROUPS = (METHOD_GROUP, DATA, OPTIMIZER, EXCHANGE, RUN, FAULTS)
"""All groups, in the order in which they are shown."""

TOML_BYTES = 2**14
"""Longer configurations are refused: a key of many parts takes quadratic time and memory."""


@dataclass(frozen=True)
class Config:
    """A run's settings."""

    method: str = setting(
        "dls", "how gradients are sparsified and exchanged", choices=methods.names, fixed=True
    )

    model: str = setting("mlp", "network to train", group=DATA, choices=models.names, fixed=True)
    mlp_widths: Integers = setting(
        (128, 64),
        "widths of the mlp's hidden layers",
        group=DATA,
        allowed=POSITIVE,
        fixed=True,
        of="model",
    )
    dataset: str = setting(
        "digits", "training and test data", group=DATA, choices=data.names, fixed=True
    )
    data_dir: str = setting(
        "", "folder that holds the dataset's files", group=DATA, metavar="FOLDER", of="dataset"
    )
    synthetic_shape: Integers = setting(
        (3, 32, 32),
        "channels, height and width of the synthetic images",
        group=DATA,
        metavar="C,H,W",
        allowed=POSITIVE,
        fixed=True,
        of="dataset",
    )
    synthetic_classes: int = setting(
        10,
        "number of classes of the synthetic data",
        group=DATA,
        allowed=Range(2, 256),
        fixed=True,
        of="dataset",
    )
    synthetic_size: int = setting(
        4096,
        "number of training images of the synthetic data",
        group=DATA,
        allowed=POSITIVE,
        fixed=True,
        of="dataset",
    )
    augment: bool = setting(
        False, "crop and flip the training images at random", group=DATA, fixed=True
    )
    batch_size: int = setting(
        32, "mini-batch size of each rank", group=DATA, unit="images", allowed=POSITIVE, fixed=True
    )
    seed: int = setting(
        0,
        "random seed of the weights, mini-batches and augmentation",
        group=DATA,
        allowed=Range(0, 2**31 - 1),
        fixed=True,
    )

    lr: float = setting(
        0.05, "learning rate", group=OPTIMIZER, metavar="RATE", allowed=NOT_NEGATIVE
    )
    lr_schedule: str = setting(
        "constant",
        "how the learning rate falls: step, to a tenth at half of the run and to a hundredth at"
        " three quarters; cosine, smoothly to 0",
        group=OPTIMIZER,
        choices=lambda: ("constant", "step", "cosine"),
    )
    lr_warmup: int = setting(
        0,
        "raise the learning rate linearly over the first N steps",
        group=OPTIMIZER,
        unit="steps",
        allowed=COUNT,
    )
    momentum: float = setting(
        0.9,
        "momentum factor of SGD, which applies to the exchanged gradient",
        group=OPTIMIZER,
        metavar="FACTOR",
        allowed=Range(0, 1, high_open=True),
    )
    nesterov: bool = setting(False, "use Nesterov momentum", group=OPTIMIZER)
    weight_decay: float = setting(
        0.0,
        "factor of the L2 penalty, added to the exchanged gradient",
        group=OPTIMIZER,
        metavar="FACTOR",
        allowed=NOT_NEGATIVE,
    )
    clip_norm: float = setting(
        0.0,
        "scale each rank's gradient down to this L2 norm before it joins the residual; 0: never",
        group=OPTIMIZER,
        metavar="NORM",
        allowed=NOT_NEGATIVE,
    )

    backend: str = setting(
        backends.default(), "compute backend", group=EXCHANGE, choices=backends.names
    )
    threads: int = setting(
        0,
        "threads of each rank; 0: its share of the cores that it may use",
        group=EXCHANGE,
        allowed=COUNT,
    )
    overlap: bool = setting(
        True,
        "send a layer's gradient while those of earlier layers are still being computed",
        group=EXCHANGE,
        of="method",
    )
    bucket_size: int = setting(
        65_536,
        "send neighbouring layers as one message once they hold N values (with --overlap)",
        group=EXCHANGE,
        unit="values",
        allowed=POSITIVE,
        of="method",
        idle_with={"overlap": lambda overlap: not overlap},
    )

    epochs: int = setting(
        30,
        "length of the run, unless --steps is given",
        group=RUN,
        unit="epochs",
        allowed=POSITIVE,
        idle_with={"steps": lambda steps: steps > 0},
    )
    steps: int = setting(
        0,
        "length of the run, including the steps before a resume; 0: as --epochs says",
        group=RUN,
        unit="steps",
        allowed=COUNT,
    )
    out: str = setting(
        "",
        "folder of the run; by default runs/DATASET-MODEL-METHOD-DATE-TIME",
        group=RUN,
        metavar="FOLDER",
    )
    checkpoint_every: int = setting(
        0,
        "write a checkpoint every N steps; 0: only at the end",
        group=RUN,
        unit="steps",
        allowed=COUNT,
    )
    keep_checkpoints: int = setting(
        0, "keep the newest N checkpoints, delete older ones; 0: keep all", group=RUN, allowed=COUNT
    )
    eval_every: int = setting(
        0,
        "evaluate on the test data every N steps; 0: after every epoch",
        group=RUN,
        unit="steps",
        allowed=COUNT,
    )
    trace_every: int = setting(
        1, "record every N-th step in the trace", group=RUN, unit="steps", allowed=POSITIVE
    )
    diagnose_every: int = setting(
        0,
        "every N steps also measure the overlap with Global Top-k's selection and time every layer;"
        " 0: never",
        group=RUN,
        unit="steps",
        allowed=COUNT,
    )
    progress: str = setting(
        "auto",
        "show a live bar, plain lines, or (auto) a bar on a terminal and lines elsewhere; under"
        " mpirun auto shows lines",
        group=RUN,
        choices=lambda: ("auto", "bar", "plain"),
    )

    timeout: float = setting(
        600.0,
        "end the run after waiting this long for other ranks",
        group=FAULTS,
        metavar="SECONDS",
        unit="seconds",
        allowed=Range(0, low_open=True),
    )
    elastic: bool = setting(
        False,
        "when a rank dies, the others continue from the last checkpoint (needs mpirun --with-ft"
        " ulfm)",
        group=FAULTS,
    )
    on_nan: str = setting(
        "stop",
        "when a loss or gradient holds NaN or infinity: stop the run, or skip the step",
        group=FAULTS,
        choices=lambda: ("stop", "skip"),
    )
    check_every: int = setting(
        100,
        "compare the ranks' weights every N steps and before each checkpoint; 0: never",
        group=FAULTS,
        unit="steps",
        allowed=COUNT,
    )

    own: Mapping[str, Any] = field(default_factory=dict)
    """The settings of all methods, by name."""

    def __getattr__(self, name: str) -> Any:
        """A setting of a method, such as `density`."""
        try:
            return self.__dict__["own"][name]
        except KeyError:
            raise AttributeError(f"there is no setting {name}") from None

    def values(self) -> dict[str, Any]:
        """All settings, by name."""
        return {name: getattr(self, name) for name in FIELDS}

    def of_method(self) -> Any:
        """The method's own settings, as an instance of its `Settings`."""
        kind = methods.load(self.method).Settings
        return kind(**{name: self.own[name] for name in fields_of(kind)})

    def to_toml(self) -> str:
        """The complete configuration as TOML, which `from_toml` reads."""
        return tomli_w.dumps({name: _plain(value) for name, value in self.values().items()})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class _Fields(Mapping[str, Field]):
    """The field of every setting, by name: the method, the methods' settings, then the others."""

    def __init__(self) -> None:
        self._known: tuple[Any, dict[str, tuple[Field, Any]]] = (None, {})

    def _all(self) -> dict[str, tuple[Field, Any]]:
        if self._known[0] != (registered := methods.registered()):
            first, *rest = [
                (name, each) for name, each in fields_of(Config).items() if name != "own"
            ]
            of_methods = methods.settings()
            _check_names(of_methods, {first[0], "own", *dict(rest)})
            self._known = registered, dict([first]) | of_methods | dict(rest)
        return self._known[1]

    def __getitem__(self, name: str) -> Field:
        return self._all()[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def type_of(self, name: str) -> Any:
        """The setting's type."""
        return self._all()[name][1]


def _check_names(of_methods: Mapping[str, tuple[Field, Any]], others: Set[str]) -> None:
    """UsageError where a method's setting has the name of a setting, a flag or a Config member."""
    off = {f"no_{name}" for name, (_, kind) in fields_of(Config).items() if kind is bool}
    off |= {f"no_{name}" for name, (_, kind) in of_methods.items() if kind is bool}
    for name in sorted(of_methods):
        if name in others | aliases.FLAGS | off or hasattr(Config, name):
            words = "has the name of another setting or flag; rename it"
            raise UsageError(f"the method's setting {name!r} {words}")


FIELDS = _Fields()
"""The field of every setting, by name."""


def parse_value(name: str, value: Any) -> Any:
    """A TOML value or a flag's text in the setting's type. UsageError where it is not allowed."""
    try:
        return parse(name, FIELDS[name], FIELDS.type_of(name), value)
    except UnknownChoice as error:
        raise UsageError(f"{error}{near(error.value, error.choices)}") from None
    except SettingError as error:
        raise UsageError(str(error)) from None


def check_together(config: Config) -> None:
    """UsageError for settings that contradict each other."""
    if not config.mlp_widths:
        raise UsageError("--mlp-widths needs at least one width")
    if len(config.synthetic_shape) != 3:
        raise UsageError("--synthetic-shape needs channels, height, width, such as 3,32,32")
    if config.nesterov and config.momentum == 0:
        raise UsageError("--nesterov needs --momentum above 0")


def from_toml(text: str, source: str) -> dict[str, Any]:
    """The settings in a TOML text.

    UsageError for bad TOML, an unknown key (with the nearest known one) or a bad value.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also for huge numbers and deep nesting
        raise UsageError(f"{source} is not valid TOML: {error}") from None
    for key, value in table.items():
        _check_key(key, value, source)
    try:
        return {key: parse_value(key, value) for key, value in table.items()}
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None


def _check_key(key: str, value: Any, source: str) -> None:
    """UsageError for a table, and for a key that is not a setting."""
    if any(isinstance(item, dict) for item in (value if isinstance(value, list) else [value])):
        raise UsageError(
            f"{source}: [{key}] is a table; settings stand at the top level of the file, without"
            " [tables]"
        )
    if key not in FIELDS:
        hint = near(key.replace("-", "_"), FIELDS, aliases.ALIASES | aliases.ELSEWHERE)
        raise UsageError(f"{source}: there is no setting '{key}'{hint}")


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file. UsageError where it cannot be read or used."""
    try:
        with path.open("rb") as file:
            text = file.read(TOML_BYTES + 1)
        if len(text) > TOML_BYTES:
            raise UsageError(
                f"the configuration {path} is longer than {TOML_BYTES} bytes; give a TOML file of"
                " settings"
            )
        return from_toml(text.decode(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"cannot read the configuration {path}: {reason}") from None


def build(*sources: Mapping[str, Any]) -> Config:
    """The configuration from the defaults and these sources; later ones override earlier ones.

    A source that sets epochs but not steps cancels the steps of those before it. UsageError.
    """
    merged: dict[str, Any] = {}
    for source in sources:
        if "epochs" in source:
            merged["steps"] = 0
        merged |= source
    own = {name: merged.pop(name, each.default) for name, (each, _) in methods.settings().items()}
    config = Config(**merged, own=own)
    check_together(config)
    return config
