"""The command line of `dls train`, made from the settings, and the settings' documentation."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dls.called import usage_name
from dls.cli import Parser, UsageError
from dls.exchange import methods
from dls.exchange.settings import (
    COUNT,
    METHOD_GROUP,
    NOT_NEGATIVE,
    POSITIVE,
    CountOrOptimal,
    Integers,
    flag,
    show,
)
from dls.program import aliases, plugins
from dls.program.config import FIELDS, GROUPS, RUN, Config, build, parse_value, read_toml

MOST_WORKERS = 64
"""The largest number of workers in one process."""
METAVARS = {int: "N", float: "X", str: "NAME", Integers: "N,…", CountOrOptimal: "N|optimal"}
"""What stands for a value of a type in help."""


@dataclass(frozen=True)
class CommandLine:
    """What the user typed.

    flags: the settings given as flags. config: a TOML file of settings. resume: never, must or
    auto. workers: how many train in this one process without MPI; 0: ranks train. file: the
    settings in the TOML file once it was read, which is done only once as it may be a pipe.
    """

    flags: Mapping[str, Any]
    config: Path | None
    resume: str
    workers: int = 0
    file: Mapping[str, Any] = field(default_factory=dict)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `dls train`."""
    name = usage_name("train")
    parser = Parser(
        _hints(),
        prog=name,
        usage=f"{name} [OPTION …]",
        description="Train a model with sparsified gradients, alone or on the ranks that mpirun"
        " starts.",
        epilog=f"Example: mpirun -n 4 {name} --method dls --density 0.001 --out runs/mine",
    )
    groups = {group: parser.add_argument_group(group) for group in GROUPS}
    _add_flags_of_the_program(groups[RUN])
    for group, names in names_in_groups().items():
        for each in names:
            _add_flag(groups[group], each)
    return parser


def _hints() -> dict[str, str]:
    """What to say of flags that other programs have."""
    meant = {name: ours.replace("_", "-") for name, ours in aliases.ALIASES.items()}
    return {name.replace("_", "-"): words for name, words in (meant | aliases.ELSEWHERE).items()}


def _add_flags_of_the_program(group: argparse._ArgumentGroup) -> None:
    """The flags that are not settings."""
    group.add_argument(
        "--config", metavar="FILE", help="read settings from this TOML file; flags override it"
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const="must",
        default="never",
        choices=("must", "auto", "never"),
        help="continue from the newest checkpoint in --out; --resume=auto starts afresh if there"
        " is none",
    )
    group.add_argument(
        "--workers",
        metavar="N",
        default="0",
        help="train with N workers in this process, without MPI and mpirun",
    )
    plugins.add_flag(group)


def names_in_groups() -> dict[str, list[str]]:
    """The names of all settings, by group."""
    of_methods = methods.settings()
    names: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name, each in FIELDS.items():
        group = METHOD_GROUP if name in of_methods else each.metadata["group"]
        names[group].append(name)
    return names


def _add_flag(group: argparse._ArgumentGroup, name: str) -> None:
    text = f"{FIELDS[name].metadata['text']}{_remarks(name)}".replace("%", "%%")
    if FIELDS.type_of(name) is bool:
        boolean = argparse.BooleanOptionalAction
        group.add_argument(flag(name), action=boolean, default=argparse.SUPPRESS, help=text)
    else:
        metavar = metavar_of(name)
        group.add_argument(flag(name), default=argparse.SUPPRESS, metavar=metavar, help=text)


def metavar_of(name: str) -> str:
    """What stands for a setting's value in help: its choices, or a word in capitals."""
    metadata = FIELDS[name].metadata
    if metadata["choices"]:
        return "{" + ",".join(metadata["choices"]()) + "}"
    return metadata["metavar"] or METAVARS[FIELDS.type_of(name)]


def _remarks(name: str) -> str:
    """A setting's default and, where it is no matter of course, its range; in brackets."""
    default: Any = FIELDS[name].default
    metadata = FIELDS[name].metadata
    remarks: list[str] = []
    if default != "":
        remarks.append(f"default: {_default(default)}")
    if metadata["unit"] and default > 1:
        remarks[0] += f" {metadata['unit']}"
    allowed = metadata["allowed"]
    if allowed and allowed not in (COUNT, NOT_NEGATIVE, POSITIVE):
        remarks.append(allowed.words())
    return f" ({'; '.join(remarks)})" if remarks else ""


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else show(value)


def before_ranks_meet(argv: Sequence[str]) -> tuple[float, int]:
    """The timeout and the number of workers, before the ranks can exchange anything.

    They come from the flags or a TOML file, where these can be used, and are the defaults
    elsewhere. A pipe is left to be read when the ranks have met. UsageError for a bad command line
    with --workers: workers need not wait for others to hear of it.
    """
    try:
        command = parse_command_line(argv)
        is_file = command.config is not None and os.path.isfile(command.config)
        table = read_toml(command.config) if command.config and is_file else {}
        return build(table, command.flags).timeout, command.workers
    except UsageError:
        if any(each.partition("=")[0] == "--workers" for each in argv):
            raise
        return Config.timeout, 0


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Read the flags.

    UsageError for an unknown flag or a bad value. SystemExit after --help and --version.
    """
    given = vars(build_parser().parse_args(argv))
    config, resume, workers = given.pop("config"), given.pop("resume"), given.pop("workers")
    given.pop("imports")  # plugins.load has run them
    flags = {name: parse_value(name, value) for name, value in given.items()}
    return CommandLine(flags, Path(config) if config else None, resume, _workers(workers))


def _workers(typed: str) -> int:
    """The number that --workers asks for. UsageError."""
    if not typed.isascii() or not typed.isdecimal() or int(typed) > MOST_WORKERS:
        raise UsageError(f"--workers {typed}: expected a whole number up to {MOST_WORKERS}")
    return int(typed)


def settings_tables() -> str:
    """All settings as Markdown tables, one for each group, for docs/settings.md."""
    return "\n".join(_table(group, names) for group, names in names_in_groups().items())


def _table(group: str, names: Sequence[str]) -> str:
    rows = [
        f"## {group.capitalize()}",
        "",
        "| flag, TOML key | default | allowed | unit | meaning |",
        "| --- | --- | --- | --- | --- |",
        *map(_row, names),
    ]
    return "\n".join(rows) + "\n"


def _row(name: str) -> str:
    metadata = FIELDS[name].metadata
    cells = (
        f"`{flag(name)}`, `{name}`",
        show(FIELDS[name].default),
        _allowed(name),
        metadata["unit"],
        metadata["text"] + (" (kept by a resumed run)" if metadata["fixed"] else ""),
    )
    return "| " + " | ".join(cells) + " |"


def _allowed(name: str) -> str:
    """Choices or range. The names of a registry are left to --help: others may add to it."""
    allowed, choices = FIELDS[name].metadata["allowed"], FIELDS[name].metadata["choices"]
    if choices is None:
        optimal = " or optimal" if FIELDS.type_of(name) == CountOrOptimal else ""
        return (allowed.words() if allowed else "") + optimal
    return ", ".join(choices()) if choices.__name__ == "<lambda>" else "see `--help`"
