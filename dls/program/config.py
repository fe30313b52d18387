"""Every setting of a run, once: name, type, default, unit, allowed range, and what it does.

A setting comes from its default, from the run that is resumed, from a TOML file, or from a flag;
the later beats the earlier.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from dls import backends
from dls.called import usage_name
from dls.cli import Parser, UsageError, near
from dls.exchange import methods
from dls.exchange.settings import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    CountOrOptimal,
    Field,
    Integers,
    Range,
    SettingError,
    UnknownChoice,
    fields_of,
    flag,
    parse,
    setting,
    show,
)
from dls.program import aliases, plugins
from dls.tasks import data, models

MOST_WORKERS = 64
"""Workers in one process."""
TOML_BYTES = 2**14
"""A configuration is not read beyond this: time and memory of reading grow with the square of a
key's parts.
"""


@dataclass(frozen=True)
class Config:
    """A run's settings."""

    method: str = setting("dls", "sparsification method", choices=methods.names, fixed=True)
    model: str = setting("mlp", "network", choices=models.names, fixed=True)
    mlp_widths: Integers = setting(
        (128, 64), "hidden widths of the mlp", allowed=POSITIVE, fixed=True, of="model"
    )
    dataset: str = setting("digits", "training and test data", choices=data.names, fixed=True)
    data_dir: str = setting("", "folder that holds the dataset's files", of="dataset")
    synthetic_shape: Integers = setting(
        (3, 32, 32),
        "channels, height, width of the synthetic data",
        allowed=POSITIVE,
        fixed=True,
        of="dataset",
    )
    synthetic_classes: int = setting(
        10, "classes of the synthetic data", allowed=Range(2, 256), fixed=True, of="dataset"
    )
    synthetic_size: int = setting(
        4096, "training images of the synthetic data", allowed=POSITIVE, fixed=True, of="dataset"
    )
    augment: bool = setting(False, "random crops and flips of the training images", fixed=True)
    batch_size: int = setting(
        32, "mini-batch of each rank", unit="images", allowed=POSITIVE, fixed=True
    )
    epochs: int = setting(
        30,
        "length of the run, unless steps is given",
        unit="epochs",
        allowed=POSITIVE,
        idle_with={"steps": lambda steps: steps > 0},
    )
    steps: int = setting(
        0,
        "length of the run in all, resumed part included; 0: by epochs",
        unit="steps",
        allowed=COUNT,
    )
    lr: float = setting(0.05, "learning rate", allowed=NOT_NEGATIVE)
    lr_schedule: str = setting(
        "constant",
        "step: a tenth from half of the run on, a hundredth from three quarters; cosine: down to 0",
        choices=lambda: ("constant", "step", "cosine"),
    )
    lr_warmup: int = setting(
        0, "learning rate rises linearly over so many steps", unit="steps", allowed=COUNT
    )
    momentum: float = setting(
        0.9, "momentum on the exchanged update", allowed=Range(0, 1, high_open=True)
    )
    nesterov: bool = setting(False, "Nesterov's momentum")
    weight_decay: float = setting(
        0.0, "L2 penalty's factor, added to the exchanged update", allowed=NOT_NEGATIVE
    )
    clip_norm: float = setting(
        0.0,
        "largest L2 norm of the rank's own gradient, before it joins the residual; 0: none",
        allowed=NOT_NEGATIVE,
    )
    seed: int = setting(
        0, "seed of weights, batches and augmentation", allowed=Range(0, 2**31 - 1), fixed=True
    )
    backend: str = setting(backends.default(), "who computes", choices=backends.names)
    threads: int = setting(
        0, "threads of each rank; 0: its cores, divided where ranks share them", allowed=COUNT
    )
    overlap: bool = setting(
        True, "send a layer while earlier ones are still being differentiated", of="method"
    )
    bucket_size: int = setting(
        65_536,
        "layers leave together from so many gradient values on, with overlap",
        unit="values",
        allowed=POSITIVE,
        of="method",
        idle_with={"overlap": lambda overlap: not overlap},
    )
    timeout: float = setting(
        600.0,
        "longest wait for other ranks, which ends the run",
        unit="seconds",
        allowed=Range(0, low_open=True),
    )
    elastic: bool = setting(
        False, "when a rank dies, the others go on from the last checkpoint (mpirun --with-ft ulfm)"
    )
    on_nan: str = setting(
        "stop",
        "what NaN or infinity in a loss or gradient does: end the run, or skip the step",
        choices=lambda: ("stop", "skip"),
    )
    check_every: int = setting(
        100,
        "compare the ranks' weights after every so many steps, and before checkpoints; 0: never",
        unit="steps",
        allowed=COUNT,
    )
    out: str = setting("", "the run's folder; runs/NAME-DATE-TIME by default")
    checkpoint_every: int = setting(
        0, "steps between checkpoints; 0: only at the end", unit="steps", allowed=COUNT
    )
    keep_checkpoints: int = setting(
        0, "newest checkpoints that stay, older ones go; 0: all", allowed=COUNT
    )
    eval_every: int = setting(
        0, "steps between evaluations; 0: after every epoch", unit="steps", allowed=COUNT
    )
    trace_every: int = setting(1, "steps between recorded steps", unit="steps", allowed=POSITIVE)
    diagnose_every: int = setting(
        0,
        "steps between those whose choice is compared with Global Top-k's, and whose phases are"
        " timed layer by layer; 0: never",
        unit="steps",
        allowed=COUNT,
    )
    progress: str = setting(
        "auto",
        "a live bar, plain lines, or a bar on a terminal (mpirun hides whether it is one)",
        choices=lambda: ("auto", "bar", "plain"),
    )

    own: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the methods, all of them, by name."""

    def __getattr__(self, name: str) -> Any:
        """A setting of the methods."""
        try:
            return self.__dict__["own"][name]
        except KeyError:
            raise AttributeError(f"there is no setting {name}") from None

    def values(self) -> dict[str, Any]:
        """All settings, by name."""
        return {name: getattr(self, name) for name in FIELDS}

    def of_method(self) -> Any:
        """The settings of the method, as it wants them."""
        kind = methods.load(self.method).Settings
        return kind(**{name: self.own[name] for name in fields_of(kind)})

    def to_toml(self) -> str:
        """The complete configuration, as a TOML text that `from_toml` takes."""
        return tomli_w.dumps({name: _plain(value) for name, value in self.values().items()})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class _Fields(Mapping[str, Field]):
    """Every setting's field, by name: first the method and what the methods read, then the rest."""

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
    """UsageError where a method's setting hides something else.

    That is a setting, a flag, or what Config has beside settings.
    """
    off = {f"no_{name}" for name, (_, kind) in fields_of(Config).items() if kind is bool}
    off |= {f"no_{name}" for name, (_, kind) in of_methods.items() if kind is bool}
    for name in sorted(of_methods):
        if name in others | aliases.FLAGS | off or hasattr(Config, name):
            words = "has the name of another setting or flag; rename it"
            raise UsageError(f"the method's setting {name!r} {words}")


FIELDS = _Fields()


def parse_value(name: str, value: Any) -> Any:
    """A TOML value or a flag's text as the setting's type, inside its range.

    UsageError otherwise.
    """
    try:
        return parse(name, FIELDS[name], FIELDS.type_of(name), value)
    except UnknownChoice as error:
        raise UsageError(f"{error}{near(error.value, error.choices)}") from None
    except SettingError as error:
        raise UsageError(str(error)) from None


def check_together(config: Config) -> None:
    """What no single setting shows. UsageError."""
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
    except (
        ValueError,
        RecursionError,
    ) as error:  # also numbers of more digits, and lists in more lists, than Python reads
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


def build(*layers: Mapping[str, Any]) -> Config:
    """The configuration from defaults and layers of settings, the later beating the earlier.

    UsageError.

    A layer that sets epochs alone takes back the steps of those before it.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= {**({"steps": 0} if "epochs" in layer else {}), **layer}
    own = {name: merged.pop(name, each.default) for name, (each, _) in methods.settings().items()}
    config = Config(**merged, own=own)
    check_together(config)
    return config


@dataclass(frozen=True)
class CommandLine:
    """What the user typed: settings given as flags, a TOML file, and how to resume (never, must or
    auto).

    workers: how many take part in this one process, without MPI; 0: the ranks that mpirun has
    started. file: the settings in the TOML file, once they were read, for which a pipe gives one
    chance.
    """

    flags: Mapping[str, Any]
    config: Path | None
    resume: str
    workers: int = 0
    file: Mapping[str, Any] = field(default_factory=dict)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m dls.train`, made from the fields of Config."""
    meant_by = {
        name.replace("_", "-"): meant.replace("_", "-") for name, meant in aliases.ALIASES.items()
    }
    meant_by |= {name.replace("_", "-"): words for name, words in aliases.ELSEWHERE.items()}
    parser = Parser(meant_by, prog=usage_name("train"), description="Train a model on MPI ranks.")
    parser.add_argument("--config", metavar="FILE", help="a TOML file of settings; flags beat it")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="must",
        default="never",
        choices=("must", "auto", "never"),
        help=(
            "go on from the last checkpoint in --out; with =auto, start afresh where there is none"
        ),
    )
    parser.add_argument(
        "--workers",
        metavar="P",
        default="0",
        help="train with P workers in this one process, without MPI and mpirun",
    )
    plugins.add_flag(parser)
    for name in FIELDS:
        _add_flag(parser, name)
    return parser


def _add_flag(parser: argparse.ArgumentParser, name: str) -> None:
    meta = FIELDS[name].metadata
    text = f"{meta['text']} ({describe_default(name)})".replace("%", "%%")
    if FIELDS.type_of(name) is bool:
        parser.add_argument(
            flag(name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
        )
    else:
        parser.add_argument(flag(name), default=argparse.SUPPRESS, metavar="X", help=text)


def describe_default(name: str) -> str:
    """A setting's choices or range, unit and default, in words."""
    meta = FIELDS[name].metadata
    default = FIELDS[name].default
    limits = " | ".join(meta["choices"]()) if meta["choices"] else str(meta["allowed"] or "")
    return ", ".join(part for part in (limits, meta["unit"], f"default {show(default)}") if part)


def before_ranks_meet(argv: Sequence[str]) -> tuple[float, int]:
    """The timeout and the workers that a command line sets, itself or in its TOML file; the
    defaults where they cannot be used.

    The file is read again when the ranks have met: what is no plain file, such as a pipe, is left
    for then. UsageError for what workers, who meet nobody, may hear at once.
    """
    try:
        command = parse_command_line(argv)
        table = (
            read_toml(command.config) if command.config and os.path.isfile(command.config) else {}
        )
        return build(table, command.flags).timeout, command.workers
    except UsageError:
        if any(each.partition("=")[0] == "--workers" for each in argv):
            raise
        return Config.timeout, 0


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Read the flags; UsageError for an unknown flag or a bad value. SystemExit behind --help and
    --version, which are said.
    """
    given = vars(build_parser().parse_args(argv))
    config, resume, workers = given.pop("config"), given.pop("resume"), given.pop("workers")
    given.pop("imports")  # plugins.load has seen to them
    flags = {name: parse_value(name, value) for name, value in given.items()}
    return CommandLine(flags, Path(config) if config else None, resume, _workers(workers))


def _workers(typed: str) -> int:
    """How many workers --workers asks for. UsageError."""
    if not typed.isascii() or not typed.isdecimal() or int(typed) > MOST_WORKERS:
        raise UsageError(f"--workers {typed}: expected a whole number up to {MOST_WORKERS}")
    return int(typed)


def _limits_in_table(name: str) -> str:
    """Choices or range; a registry's names are left to --help, so that adding one touches no
    documentation.
    """
    allowed, choices = FIELDS[name].metadata["allowed"], FIELDS[name].metadata["choices"]
    if choices is None:
        return str(allowed or "") + (", optimal" if FIELDS.type_of(name) == CountOrOptimal else "")
    return ", ".join(choices()) if choices.__name__ == "<lambda>" else "see `--help`"


def settings_table() -> str:
    """All settings as a Markdown table, for docs/settings.md."""
    rows = [
        "| flag, TOML key | default | allowed | unit | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in FIELDS:
        meta = FIELDS[name].metadata
        limits = _limits_in_table(name)
        kept = " (kept by a resumed run)" if meta["fixed"] else ""
        cells = (
            f"`{flag(name)}`, `{name}`",
            show(FIELDS[name].default),
            limits,
            meta["unit"],
            meta["text"] + kept,
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"
