"""The benchmarks measure what they say they do, on sizes that take no time; that they are fast is
for no test to say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dls import backends
from dls.bench import __main__ as bench
from dls.bench import pytorch
from dls.bench.floor import floor
from dls.bench.selector import Selector
from dls.bench.workload import workloads
from dls.tools import machine, reports, turns
from gpu.cupy import device
from reference import ops

pytestmark = pytest.mark.usefixtures("gpu_or_host")

COLUMNS = {
    "numpy": ["steady / floor", "cold / floor", "numpy / floor", "numpy / steady", "topk / floor"],
    "numba": ["steady / floor", "cold / floor", "numpy / floor", "numpy / steady", "topk / floor"],
    "cupy": ["steady / floor", "cold / floor", "topk / floor", "numba / floor", "numba / steady"],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "WARM_UP", 1)


def measure(folder: Path, *args: str) -> list[dict[str, Any]]:
    command = [*args, "--threads", "1", "--steps", "2", "--json", str(folder / "rows.json")]
    assert bench.main(command) == 0
    rows: list[dict[str, Any]] = json.loads((folder / "rows.json").read_text())
    return rows


@pytest.mark.parametrize("backend", backends.names())
def test_selection_of_every_size_and_density(backend: str, tmp_path: Path) -> None:
    rows = measure(tmp_path, "select", "--backend", backend, "--sizes", "2000,resnet20")
    assert [(row["layers"], row["density"]) for row in rows] == [
        (n, d) for n in ("2000", "resnet20") for d in (0.01, 0.001)
    ]
    for row in rows:
        assert set(COLUMNS[backend]) <= set(row)
        assert row["steady / floor"] == pytest.approx(row["steady, ms"] / row["floor, ms"])
        assert row["topk / floor"] == "not installed" or row["topk / steady"] > 0


@pytest.mark.parametrize("backend", backends.names())
def test_adjustment(backend: str, tmp_path: Path) -> None:
    (row,) = measure(
        tmp_path, "adjust", "--backend", backend, "--sizes", "resnet20", "--densities", "0.01"
    )
    assert row["adjust / select"] == pytest.approx(row["adjust, ms"] / row["select, ms"])
    assert (
        min(value for name, value in row.items() if name not in ("layers", "density", "threads"))
        > 0
    )


@pytest.mark.parametrize("name", backends.names())
def test_what_is_measured_is_a_step(name: str) -> None:
    """After a few steps each backend's residual is that of the definition."""
    (work,) = workloads(["resnet20"], [0.01])
    backend, residual, k = backends.load(name), ops.zeros(work.n), work.k()
    selector = Selector(backend, work)
    for step in range(3):
        selector.step(backend.ops.from_host(work.gradient(step)))
        index, values, _, _ = ops.select_layers(
            residual, work.gradient(step), work.offsets, k, np.zeros(k.size)
        )
        ops.scatter_subtract(residual, index, values)
    assert backend.ops.to_host(selector.residual).tobytes() == residual.tobytes()


def test_the_pipeline_in_torch_keeps_the_same_residual() -> None:
    """Between values none of which are equal."""
    torch = pytest.importorskip("torch")
    (work,) = workloads(["5000"], [0.01])
    residual, selector = torch.zeros(work.n), Selector(backends.load("numpy"), work)
    pipeline = pytorch.pipeline(torch, work, residual)
    for step in range(3):
        assert pipeline.turn(work.gradient(step)) > 0
        selector.step(work.gradient(step))
    assert residual.numpy().tobytes() == selector.residual.tobytes()


def test_the_floor_of_a_gpu_moves_the_bytes_of_an_accumulation() -> None:
    """n = 1000: 12,000 bytes, half of them read and half of them written."""
    moved = []

    class Copied(np.ndarray):
        def __setitem__(self, place: Any, values: Any) -> None:
            moved.append(self.nbytes + values.nbytes)

    class Ops:
        zeros = staticmethod(lambda n: np.zeros(n, np.float32).view(Copied))
        to_host = staticmethod(np.asarray)
        describe = staticmethod(lambda: {"device": "a card"})

    copies = floor(backends.Backend("cupy", Ops, *[Ops] * 3), 1000)  # type: ignore[arg-type]
    copies.turn(np.zeros(1000, np.float32))
    assert moved == [12_000] * copies.steps


def test_a_report_names_the_device_and_all_versions(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    args = ["select", "--backend", "cupy", "--sizes", "1000", "--threads", "1", "--steps", "1"]
    assert bench.main([*args, "--report", str(folder)]) == 0
    (path,) = folder.iterdir()
    report = json.loads(path.read_text())
    assert report["device"] == device.current().describe()["device"]
    assert path.name == f"select-{reports.slug(report['device'])}.json"
    assert {"backend", "commit", "date", "python", "dls"} <= set(report)
    assert set(report["packages"]) == set(machine.PACKAGES)
    assert report["packages"]["numpy"] == np.__version__
    assert [row["layers"] for row in report["rows"]] == ["1000", "1000"]


def test_a_folder_that_cannot_be_is_refused_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert bench.main(["select", "--report", str(tmp_path / "file" / "folder")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_names_of_devices() -> None:
    assert reports.slug("NVIDIA A100-SXM4-80GB") == "nvidia-a100-sxm4-80gb"
    assert backends.load("numba").describe()["device"]
