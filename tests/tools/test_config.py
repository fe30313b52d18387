"""Settings: one table, one way in, and back again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dls import config
from dls.config import Config, UsageError
from tests.launch import ROOT


def test_the_documented_table_is_the_code_s() -> None:
    assert config.settings_table() in (ROOT / "docs" / "settings.md").read_text()


def test_every_default_passes_its_own_check() -> None:
    for name, field in config.FIELDS.items():
        assert config.parse_value(name, field.default) == field.default


def test_toml_round_trip() -> None:
    c = Config(dls_steps="optimal", mlp_widths=(7,), density=0.125, overlap=False, out="a 'b' \"c\"\n")
    assert config.build(config.from_toml(c.to_toml(), "text")) == c


@given(st.sampled_from(sorted(config.FIELDS)), st.text() | st.integers() | st.floats() | st.booleans())
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
    text = config.build_parser().format_help()
    for field in dataclasses.fields(Config):
        assert "--" + field.name.replace("_", "-") in text
