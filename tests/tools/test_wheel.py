"""What is built: a wheel that runs anywhere, and says of which commit it is."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dls import version
from tests.checkout import commit_all, write
from tests.launch import ROOT

SOURCES = {
    "dls/__init__.py": "",
    "dls/train.py": "",
    "reference/__init__.py": "",
    "gpu/__init__.py": "",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    write(root, SOURCES)
    commit_all(root)
    return root


def installed(checkout: Path, to: Path) -> Path:
    """The sources as a wheel has them."""
    text = version.build_record(checkout)
    assert text is not None
    write(to, SOURCES | {version.BUILD_FILE: text})
    return to


def test_a_wheel_is_of_the_commit_that_it_was_built_from(checkout: Path, tmp_path: Path) -> None:
    here = version.origin(checkout)
    assert version.COMMIT.fullmatch(here.commit)
    assert not here.changed
    there = installed(checkout, tmp_path / "site-packages")
    assert version.origin(there) == here
    (there / "dls" / "train.py").write_text("# changed since")
    assert version.origin(there) == version.Origin(here.commit, True)


def test_a_wheel_of_changed_sources_says_so(checkout: Path, tmp_path: Path) -> None:
    (checkout / "gpu" / "more.py").write_text("")
    there = installed(checkout, tmp_path / "site-packages")
    assert version.origin(there) == version.Origin(version.of_checkout(checkout).commit, True)
    assert version.origin(there).short().endswith("+")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"commit": "--output=x", "sources": ""}', '{"commit": 3}']
)
def test_a_damaged_record_names_no_commit(text: str, tmp_path: Path) -> None:
    write(tmp_path, SOURCES | {version.BUILD_FILE: text})
    assert version.origin(tmp_path) == version.NOWHERE


def test_sources_of_no_commit_get_no_record(tmp_path: Path) -> None:
    write(tmp_path, SOURCES)
    assert version.build_record(tmp_path) is None


def python(*arguments: str, cwd: Path, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_installs_a_program_that_runs_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="pip install 'dls[dev]' brings hatchling")
    dist, place, elsewhere = (tmp_path / name for name in ("dist", "place", "elsewhere"))
    elsewhere.mkdir()
    python("-m", "hatchling", "build", "-t", "wheel", "-d", str(dist), cwd=ROOT)
    (wheel,) = dist.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(about))
        record = version.BUILD_FILE in names and json.loads(archive.read(version.BUILD_FILE))
    assert {"dls/py.typed", "reference/py.typed", "gpu/py.typed"} <= set(names)
    assert any(name.endswith("share/dls/slurm.sbatch") for name in names)
    assert not [name for name in names if name.startswith("tests/")]
    assert (metadata["Name"], metadata["Version"]) == ("dls", version.__version__)
    head = version.of_checkout(ROOT)
    assert not head.commit or record["commit"] == head.commit

    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile")
    python(*pip, "--target", str(place), str(wheel), cwd=elsewhere)
    environ = {"PYTHONPATH": str(place)}
    found = python("-c", "import dls; print(dls.__file__)", cwd=elsewhere, **environ)
    assert Path(found.strip()).is_relative_to(place)
    said = python(str(place / "bin" / "dls"), "--version", cwd=elsewhere, **environ)
    assert said == version.described() + "\n"
    trace = "from dls.program import sources; print(sources.commit('dls'))"
    here = python("-c", trace, cwd=ROOT, PYTHONPATH=str(ROOT))
    assert python("-c", trace, cwd=elsewhere, **environ) == here


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^cff-version: 1\.2\.0$", text, re.MULTILINE)
    assert f"\nversion: {version.__version__}\n" in text
