"""Every setting of a run, once: name, type, default, unit, allowed range, and what it does.

A setting comes from its default, from the run that is resumed, from a TOML file, or from a flag; the later beats the earlier.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn

import tomli_w

import dls
from dls import backends, data, hints, launcher, models, sparsifiers
from reference.methods import Source
from reference.wire import VALUE_BYTES

ShapeOrWidths = tuple[int, ...]
Steps = int | Literal["optimal"]


class UsageError(ValueError):
    """Bad usage or configuration: one clear line for the user, exit status 2."""


@dataclass(frozen=True)
class Range:
    """The numbers a setting may take: low <= x <= high, an end left out where it is open."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def holds(self, x: float) -> bool:
        """Whether x lies inside; NaN never does."""
        above = x > self.low if self.low_open else x >= self.low
        return above and (x < self.high if self.high_open else x <= self.high)

    def __str__(self) -> str:
        left = f"{'(' if self.low_open else '['}{self.low:g}" if self.low > -math.inf else "(-inf"
        right = f"{self.high:g}{')' if self.high_open else ']'}" if self.high < math.inf else "inf)"
        return f"{left}, {right}"


def _setting(
    default: Any,
    text: str,
    *,
    unit: str = "",
    allowed: Range | None = None,
    choices: Callable[[], Sequence[str]] | None = None,
    fixed: bool = False,
    of: str = "",
    idle_with: Mapping[str, Callable[[Any], bool]] = MappingProxyType({}),
) -> Any:
    """A field of Config. `fixed`: a resumed run keeps it; choices: a function, as names come from their registries.

    of: "method", "model" or "dataset", where it is these that read the setting or not, and say so;
    idle_with: other settings, and whether this one has no effect beside a value of theirs (see `dls.idle`).
    """
    limits = {"unit": unit, "allowed": allowed, "choices": choices, "fixed": fixed}
    return field(default=default, metadata={"text": text, "of": of, "idle_with": idle_with} | limits)


TOML_BYTES = 2**14
"""A configuration is not read beyond this: time and memory of reading grow with the square of a key's parts."""
LARGEST = 1e12
"""No count is larger."""
POSITIVE, COUNT = Range(1, LARGEST), Range(0, LARGEST)
NOT_NEGATIVE = Range(0)


@dataclass(frozen=True)
class Config:
    """A run's settings."""

    method: str = _setting("dls", "sparsification method", choices=sparsifiers.names, fixed=True)
    density: float = _setting(
        0.01, "share of the gradient that each rank uploads", allowed=Range(0, 1, low_open=True), fixed=True, of="method"
    )
    density_warmup: int = _setting(
        0, "density falls from 0.25 to its value over so many steps", unit="steps", allowed=COUNT, fixed=True, of="method"
    )
    dls_steps: Steps = _setting(1, "threshold adjustments after a training step, or 'optimal'", allowed=COUNT, of="method")
    dls_every: int = _setting(1, "adjust only after every so many steps", unit="steps", allowed=POSITIVE, of="method")
    dls_from: str = _setting(
        "sent",
        "the next step's v, for the adjustment: this step's as it was sent; what is left of it; that and its gradient once more",
        choices=lambda: typing.get_args(Source),
        of="method",
        idle_with={"dls_steps": lambda steps: steps == 0},
    )
    dls_reserve: float = _setting(
        2.0,
        "each layer leaves so many times √k of its k values, the first all, to the last message's choice over all layers",
        allowed=NOT_NEGATIVE,
        of="method",
    )
    dls_init: str = _setting(
        "uniform", "how DLS splits the first step's budget", choices=lambda: ("uniform", "variance"), fixed=True, of="method"
    )
    model: str = _setting("mlp", "network", choices=models.names, fixed=True)
    mlp_widths: ShapeOrWidths = _setting((128, 64), "hidden widths of the mlp", allowed=POSITIVE, fixed=True, of="model")
    dataset: str = _setting("digits", "training and test data", choices=data.names, fixed=True)
    data_dir: str = _setting("", "folder that holds the dataset's files", of="dataset")
    synthetic_shape: ShapeOrWidths = _setting(
        (3, 32, 32), "channels, height, width of the synthetic data", allowed=POSITIVE, fixed=True, of="dataset"
    )
    synthetic_classes: int = _setting(10, "classes of the synthetic data", allowed=Range(2, 256), fixed=True, of="dataset")
    synthetic_size: int = _setting(4096, "training images of the synthetic data", allowed=POSITIVE, fixed=True, of="dataset")
    augment: bool = _setting(False, "random crops and flips of the training images", fixed=True)
    batch_size: int = _setting(32, "mini-batch of each rank", unit="images", allowed=POSITIVE, fixed=True)
    epochs: int = _setting(
        30,
        "length of the run, unless steps is given",
        unit="epochs",
        allowed=POSITIVE,
        idle_with={"steps": lambda steps: steps > 0},
    )
    steps: int = _setting(0, "length of the run in all, resumed part included; 0: by epochs", unit="steps", allowed=COUNT)
    lr: float = _setting(0.05, "learning rate", allowed=NOT_NEGATIVE)
    lr_schedule: str = _setting(
        "constant",
        "step: a tenth from half of the run on, a hundredth from three quarters; cosine: down to 0",
        choices=lambda: ("constant", "step", "cosine"),
    )
    lr_warmup: int = _setting(0, "learning rate rises linearly over so many steps", unit="steps", allowed=COUNT)
    momentum: float = _setting(0.9, "momentum on the exchanged update", allowed=Range(0, 1, high_open=True))
    nesterov: bool = _setting(False, "Nesterov's momentum")
    weight_decay: float = _setting(0.0, "L2 penalty's factor, added to the exchanged update", allowed=NOT_NEGATIVE)
    clip_norm: float = _setting(
        0.0, "largest L2 norm of the rank's own gradient, before it joins the residual; 0: none", allowed=NOT_NEGATIVE
    )
    seed: int = _setting(0, "seed of weights, batches and augmentation", allowed=Range(0, 2**31 - 1), fixed=True)
    backend: str = _setting(backends.default(), "who computes", choices=backends.names)
    threads: int = _setting(
        0, "threads of each rank; 0: its cores, divided where ranks share them", allowed=COUNT
    )
    overlap: bool = _setting(True, "send a layer while earlier ones are still being differentiated", of="method")
    bucket_size: int = _setting(
        65_536,
        "layers leave together from so many gradient values on, with overlap",
        unit="values",
        allowed=POSITIVE,
        of="method",
        idle_with={"overlap": lambda overlap: not overlap},
    )
    value_dtype: str = _setting(
        "float32",
        "type in which values travel; what rounding drops stays in the residual",
        choices=lambda: tuple(VALUE_BYTES),
        fixed=True,
        of="method",
    )
    timeout: float = _setting(
        600.0, "longest wait for other ranks, which ends the run", unit="seconds", allowed=Range(0, low_open=True)
    )
    elastic: bool = _setting(False, "when a rank dies, the others go on from the last checkpoint (mpirun --with-ft ulfm)")
    on_nan: str = _setting(
        "stop", "what NaN or infinity in a loss or gradient does: end the run, or skip the step", choices=lambda: ("stop", "skip")
    )
    check_every: int = _setting(
        100,
        "compare the ranks' weights after every so many steps, and before checkpoints; 0: never",
        unit="steps",
        allowed=COUNT,
    )
    out: str = _setting("", "the run's folder; runs/NAME-DATE-TIME by default")
    checkpoint_every: int = _setting(0, "steps between checkpoints; 0: only at the end", unit="steps", allowed=COUNT)
    keep_checkpoints: int = _setting(0, "newest checkpoints that stay, older ones go; 0: all", allowed=COUNT)
    eval_every: int = _setting(0, "steps between evaluations; 0: after every epoch", unit="steps", allowed=COUNT)
    trace_every: int = _setting(1, "steps between recorded steps", unit="steps", allowed=POSITIVE)
    diagnose_every: int = _setting(
        0,
        "steps between those whose choice is compared with Global Top-k's, and whose phases are timed layer by layer; 0: never",
        unit="steps",
        allowed=COUNT,
    )
    progress: str = _setting(
        "auto",
        "a live bar, plain lines, or a bar on a terminal (mpirun hides whether it is one)",
        choices=lambda: ("auto", "bar", "plain"),
    )

    def to_toml(self) -> str:
        """The complete configuration, as a TOML text that `from_toml` takes."""
        return tomli_w.dumps({f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


FIELDS: Mapping[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(Config)}
_TYPES = typing.get_type_hints(Config)


def flag(name: str) -> str:
    """A setting's flag on the command line."""
    return "--" + name.replace("_", "-")


def parse_value(name: str, value: Any) -> Any:
    """A TOML value or a flag's text as the setting's type, inside its range. UsageError otherwise."""
    try:
        converted = _convert(_TYPES[name], value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{flag(name)} {show_value(value)}: expected {_type_words(_TYPES[name])}") from None
    _check(name, converted)
    return converted


def _convert(kind: Any, value: Any) -> Any:
    """Raises TypeError or ValueError where value is not of that kind."""
    if kind == ShapeOrWidths:
        items = value.replace("x", ",").split(",") if isinstance(value, str) else value
        return tuple(_convert(int, item) for item in items)
    if kind == Steps:
        return value if value == "optimal" else _convert(int, value)
    accepted = {bool: bool, int: int | str, float: float | int | str, str: str}[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    if isinstance(value, str) and "\0" in value.encode().decode():  # no file has such a name; encode refuses what is no text
        raise ValueError
    return kind(value)


def _type_words(kind: Any) -> str:
    if kind == ShapeOrWidths:
        return "whole numbers such as 128,64"
    if kind == Steps:
        return "a whole number or 'optimal'"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]


def _check(name: str, value: Any) -> None:
    allowed: Range | None = FIELDS[name].metadata["allowed"]
    choices = FIELDS[name].metadata["choices"]
    if choices is not None and value not in choices():
        hint = hints.near(str(value), choices())
        raise UsageError(f"unknown {name.replace('_', ' ')} '{value}': choose one of {', '.join(choices())}{hint}")
    if allowed is None or value == "optimal":
        return
    for number in value if isinstance(value, tuple) else (value,):
        if not allowed.holds(number) or number in (math.inf, -math.inf):
            raise UsageError(f"{flag(name)} {show_value(number)} is outside {allowed}")


def check_together(config: Config) -> None:
    """What no single setting shows. UsageError."""
    if not config.mlp_widths:
        raise UsageError("--mlp-widths needs at least one width")
    if len(config.synthetic_shape) != 3:
        raise UsageError("--synthetic-shape needs channels, height, width, such as 3,32,32")
    if config.nesterov and config.momentum == 0:
        raise UsageError("--nesterov needs --momentum above 0")


def from_toml(text: str, source: str) -> dict[str, Any]:
    """The settings in a TOML text. UsageError for bad TOML, an unknown key (with the nearest known one) or a bad value."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of more digits, and lists in more lists, than Python reads
        raise UsageError(f"{source} is not valid TOML: {error}") from None
    for key, value in table.items():
        _check_key(key, value, source)
    try:
        return {key: parse_value(key, value) for key, value in table.items()}
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None


def _check_key(key: str, value: Any, source: str) -> None:
    """UsageError for a table, and for a key that is no setting."""
    if any(isinstance(item, dict) for item in (value if isinstance(value, list) else [value])):
        raise UsageError(f"{source}: [{key}] is a table; settings stand at the top level of the file, without [tables]")
    if key not in FIELDS:
        hint = hints.near(key.replace("-", "_"), FIELDS, hints.ALIASES | hints.ELSEWHERE)
        raise UsageError(f"{source}: there is no setting '{key}'{hint}")


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file. UsageError where it cannot be read or used."""
    try:
        with path.open("rb") as file:
            text = file.read(TOML_BYTES + 1)
        if len(text) > TOML_BYTES:
            raise UsageError(f"the configuration {path} is longer than {TOML_BYTES} bytes; give a TOML file of settings")
        return from_toml(text.decode(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"cannot read the configuration {path}: {reason}") from None


def build(*layers: Mapping[str, Any]) -> Config:
    """The configuration from defaults and layers of settings, the later beating the earlier. UsageError.

    A layer that sets epochs alone takes back the steps of those before it.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= {**({"steps": 0} if "epochs" in layer else {}), **layer}
    config = Config(**merged)
    check_together(config)
    return config


@dataclass(frozen=True)
class CommandLine:
    """What the user typed: settings given as flags, a TOML file, and how to resume (never, must or auto).

    file: the settings in it, once they were read, for which a pipe gives one chance.
    """

    flags: Mapping[str, Any]
    config: Path | None
    resume: str
    file: Mapping[str, Any] = field(default_factory=dict)


class Parser(argparse.ArgumentParser):
    """A command line that takes no abbreviations, knows --version, and whose errors are UsageError.

    aliases: what people type for the name of an option, and what they mean, in words.
    """

    def __init__(self, aliases: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._aliases = aliases or {}
        self.add_argument("--version", action="version", version=f"dls {dls.__version__}", help="show the version")

    def parse_args(  # type: ignore[override]  # the other signatures are of no use here
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """The options. UsageError for one that there is not, with the nearest that there is."""
        found, odd = self.parse_known_args(args, namespace)
        if odd:
            self.error(f"unrecognized arguments: {' '.join(odd)}" + self._hint(odd))
        return found

    def _hint(self, odd: Sequence[str]) -> str:
        known = [name.removeprefix("--") for name in self._names() if name.startswith("--")]
        flags = [text.lstrip("-").partition("=")[0] for text in odd if text.startswith("-") or "=" in text]
        found = (hints.near(each.replace("_", "-"), known, self._aliases, "--") for each in flags)
        return next(filter(None, found), "")

    def _names(self) -> Iterator[str]:
        """The options of this command line and of the commands below it."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for below in action.choices.values():
                    yield from below._names()

    def error(self, message: str) -> NoReturn:
        """UsageError, in place of an end of the process."""
        raise UsageError(f"{message}; see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help and version, from one rank of those that a launcher started."""
        if launcher.rank(os.environ) == 0:
            super()._print_message(message, file)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m dls.train`, made from the fields of Config."""
    aliases = {name.replace("_", "-"): meant.replace("_", "-") for name, meant in hints.ALIASES.items()}
    aliases |= {name.replace("_", "-"): words for name, words in hints.ELSEWHERE.items()}
    parser = Parser(aliases, prog="python -m dls.train", description="Train a model on MPI ranks.")
    parser.add_argument("--config", metavar="FILE", help="a TOML file of settings; flags beat it")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="must",
        default="never",
        choices=("must", "auto", "never"),
        help="go on from the last checkpoint in --out; with =auto, start afresh where there is none",
    )
    for name in FIELDS:
        _add_flag(parser, name)
    return parser


def _add_flag(parser: argparse.ArgumentParser, name: str) -> None:
    meta = FIELDS[name].metadata
    text = f"{meta['text']} ({describe_default(name)})".replace("%", "%%")
    if _TYPES[name] is bool:
        parser.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
    else:
        parser.add_argument(flag(name), default=argparse.SUPPRESS, metavar="X", help=text)


def describe_default(name: str) -> str:
    """A setting's choices or range, unit and default, in words."""
    meta = FIELDS[name].metadata
    default = FIELDS[name].default
    limits = " | ".join(meta["choices"]()) if meta["choices"] else str(meta["allowed"] or "")
    return ", ".join(part for part in (limits, meta["unit"], f"default {show_value(default)}") if part)


def show_value(value: Any) -> str:
    """A setting's value as a user types it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 1024:
        return "a number of very many digits"  # which Python refuses to write
    return "none" if value == "" else str(value)


def timeout_of(argv: Sequence[str]) -> float:
    """The timeout that a command line sets, itself or in its TOML file; the default where they cannot be used.

    The file is read again when the ranks have met: what is no plain file, such as a pipe, is left for then.
    """
    try:
        command = parse_command_line(argv)
        table = read_toml(command.config) if command.config and os.path.isfile(command.config) else {}
        return build(table, command.flags).timeout
    except UsageError:
        return Config.timeout


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Read the flags; UsageError for an unknown flag or a bad value. SystemExit behind --help and --version, which are said."""
    given = vars(build_parser().parse_args(argv))
    config, resume = given.pop("config"), given.pop("resume")
    flags = {name: parse_value(name, value) for name, value in given.items()}
    return CommandLine(flags, Path(config) if config else None, resume)


def _limits_in_table(name: str) -> str:
    """Choices or range; a registry's names are left to --help, so that adding one touches no documentation."""
    allowed, choices = FIELDS[name].metadata["allowed"], FIELDS[name].metadata["choices"]
    if choices is None:
        return str(allowed or "") + (", optimal" if _TYPES[name] == Steps else "")
    return ", ".join(choices()) if choices.__module__ == __name__ else "see `--help`"


def settings_table() -> str:
    """All settings as a Markdown table, for docs/settings.md."""
    rows = ["| flag, TOML key | default | allowed | unit | meaning |", "| --- | --- | --- | --- | --- |"]
    for name in FIELDS:
        meta = FIELDS[name].metadata
        limits = _limits_in_table(name)
        kept = " (kept by a resumed run)" if meta["fixed"] else ""
        cells = (f"`{flag(name)}`, `{name}`", show_value(FIELDS[name].default), limits, meta["unit"], meta["text"] + kept)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"
