"""Settings: one table, one way in, and back again."""

from __future__ import annotations

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
        ("num_workers", "; mpirun -n says how many ranks there are, or --workers"),
        ("optimizer", "; SGD is the one optimizer, see --momentum, --nesterov and --weight-decay"),
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
    with_dashes = hint.replace("mean ", "mean --").replace("batch_size", "batch-size")
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
        ("method", "signsgd", ""),
        ("model", "resnet", "; did you mean resnet20?"),
        ("dataset", "cifar-10", "; did you mean cifar10?"),
        ("value_dtype", "bf16", ""),
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


@pytest.mark.parametrize(
    "text", ["[dls]\nsteps = 1", "[[runs]]\nsteps = 1", "lr.value = 1", "[method]\nname = 'dls'"]
)
def test_tables_are_explained(text: str) -> None:
    with pytest.raises(
        UsageError,
        match=r"is a table; settings stand at the top level of the file, without \[tables\]$",
    ):
        config.from_toml(text, "file")
