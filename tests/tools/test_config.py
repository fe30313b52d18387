"""Settings: one table, one way in, and back again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dls.cli import UsageError
from dls.program import aliases, config, flags
from tests.launch import ROOT


def test_the_documented_table_is_the_code_s() -> None:
    assert flags.settings_tables() in (ROOT / "docs" / "settings.md").read_text()


def test_every_default_passes_its_own_check() -> None:
    for name, field in config.FIELDS.items():
        assert config.parse_value(name, field.default) == field.default


def test_toml_round_trip() -> None:
    given = {"dls_steps": "optimal", "mlp_widths": (7,), "density": 0.125, "overlap": False}
    c = config.build(given | {"out": "a 'b' \"c\"\n"})
    assert config.build(config.from_toml(c.to_toml(), "text")) == c


@given(
    st.sampled_from(sorted(config.FIELDS)), st.text() | st.integers() | st.floats() | st.booleans()
)
def test_any_value_is_taken_or_refused(name: str, value: object) -> None:
    try:
        parsed = config.parse_value(name, value)
    except UsageError as error:
        assert str(error)
    else:
        assert config.parse_value(name, parsed) == parsed


@given(st.text())
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    try:
        config.from_toml(text, "file")
    except UsageError as error:
        assert "file" in str(error)


@pytest.mark.parametrize("path", sorted((ROOT / "runs").glob("*.toml")), ids=lambda path: path.name)
def test_committed_runs_are_valid(path: Path) -> None:
    config.build(config.read_toml(path))


def test_a_flag_exists_for_every_setting() -> None:
    text = flags.build_parser().format_help()
    for name in config.FIELDS:
        assert "--" + name.replace("_", "-") in text


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("densty", "; did you mean density?"),
        ("batchsize", "; did you mean batch_size?"),
        ("LR", "; did you mean lr?"),
        ("learning_rate", "; did you mean lr?"),
        ("learning-rate", "; did you mean lr?"),
        ("batch", "; did you mean batch_size?"),
        ("gpu", "; did you mean backend?"),
        ("num_workers", f"; {aliases.RANKS}"),
        ("sparsity", f"; {aliases.DENSITY}"),
        ("topk", f"; {aliases.DENSITY}"),
        ("optimizer", f"; {aliases.OPTIMIZER}"),
        ("per_device_train_batch_size", "; did you mean batch_size?"),
        ("max_grad_norm", "; did you mean clip_norm?"),
        ("bucket_cap_mb", "; did you mean bucket_size?"),
        ("Learning_Rate", "; did you mean lr?"),
        ("resume_from_checkpoint", f"; {aliases.RESUME}"),
        ("gradient_accumulation_steps", f"; {aliases.ACCUMULATION}"),
        ("frobnicate", ""),
        ("xyz", ""),
    ],
)
def test_a_setting_that_there_is_not_gets_a_hint_where_one_is_near(key: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        config.from_toml(f'"{key}" = 1', "file")
    assert str(refused.value) == f"file: there is no setting '{key}'{hint}"
    typed = "--" + key.replace("_", "-")
    with pytest.raises(UsageError) as refused:
        flags.parse_command_line([typed, "1"])
    with_dashes = re.sub(r"mean (\w+)\?$", lambda m: f"mean --{m[1].replace('_', '-')}?", hint)
    assert (
        str(refused.value)
        == f"unrecognized arguments: {typed} 1{with_dashes}; see python -m dls.train --help"
    )


@pytest.mark.parametrize("key", ["config", "import", "resume", "workers"])
def test_what_is_a_flag_alone_is_no_setting_of_a_file(key: str) -> None:
    with pytest.raises(UsageError) as refused:
        config.from_toml(f"{key} = 1", "file")
    hint = f"--{key} is a flag of the command line alone"
    assert str(refused.value) == f"file: there is no setting '{key}'; {hint}"


@pytest.mark.parametrize("typed", ["-lr", "--lr_=0.1", "lr=0.1", "---lr"])
def test_other_ways_to_write_a_flag_get_the_hint_too(typed: str) -> None:
    with pytest.raises(UsageError, match=r"; did you mean --lr\?;"):
        flags.parse_command_line([typed])


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("method", "layerwise_topk", "; did you mean layerwise-topk?"),
        ("method", "DLS", "; did you mean dls?"),
        ("method", "dsl", "; did you mean dls?"),
        ("method", "signsgd", ""),
        ("model", "resnet", "; did you mean resnet20?"),
        ("dataset", "cifar-10", "; did you mean cifar10?"),
        ("value_dtype", "bf16", "; did you mean bfloat16?"),
    ],
)
def test_a_name_that_there_is_not_too(name: str, value: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        config.parse_value(name, value)
    known = ", ".join(config.FIELDS[name].metadata["choices"]())
    assert (
        str(refused.value)
        == f"unknown {name.replace('_', ' ')} '{value}': choose one of {known}{hint}"
    )


def test_every_alias_means_a_setting_and_is_none() -> None:
    assert set(aliases.ALIASES.values()) <= config.FIELDS.keys()
    assert not (aliases.ALIASES | aliases.ELSEWHERE).keys() & config.FIELDS.keys()
    assert not aliases.ALIASES.keys() & aliases.ELSEWHERE.keys()


def test_no_other_program_s_name_means_two_settings() -> None:
    names = [theirs for names in aliases.NAMES.values() for theirs in names]
    assert len(names) == len(set(names))


def test_every_setting_stands_in_one_group_of_the_help() -> None:
    groups = flags.names_in_groups()
    assert tuple(groups) == config.GROUPS
    assert sorted(name for names in groups.values() for name in names) == sorted(config.FIELDS)
    text = flags.build_parser().format_help()
    places = [text.index(f"\n{group}:\n") for group in config.GROUPS]
    assert places == sorted(places)


def test_help_shows_choices_where_the_value_stands() -> None:
    assert "--on-nan {stop,skip}" in flags.build_parser().format_help()
    for name, field in config.FIELDS.items():
        if field.metadata["choices"]:
            assert flags.metavar_of(name) == "{" + ",".join(field.metadata["choices"]()) + "}"


@pytest.mark.parametrize(
    "text", ["[dls]\nsteps = 1", "[[runs]]\nsteps = 1", "lr.value = 1", "[method]\nname = 'dls'"]
)
def test_tables_are_explained(text: str) -> None:
    with pytest.raises(
        UsageError,
        match=r"is a table; settings stand at the top level of the file, without \[tables\]$",
    ):
        config.from_toml(text, "file")
