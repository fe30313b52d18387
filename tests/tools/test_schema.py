"""dls-trace/2: its table, its messages, many ranks, and what other programs make of it."""

from __future__ import annotations

import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray

import dls
from dls.comm import local
from dls.comm.base import Comm
from dls.comm.lanes import Message
from dls.exchange import methods
from dls.exchange.columns import PER_LAYER, PER_STEP, Column
from dls.exchange.exchanger import Row
from dls.inspect.__main__ import main as inspect
from dls.record import packing, reader, schema
from dls.record.recorder import FLUSH_BYTES, Recorder
from dls.record.repair import repair
from dls.record.schema import GROUPS, SECONDS, Header, TraceError, columns_of
from dls.record.writer import Writer
from dls.train import main as train
from tests.launch import ROOT
from tests.tools.test_trace import LAYERS, RANKS, header, rows

TINY = "--mlp-widths 8 --batch-size 4 --threads 1 --backend numpy --density 0.05 --bucket-size 64"
OLD = ROOT / "tests" / "tools" / "traces" / "dls-trace-1.h5.xz"
"""Two ranks, DLS, six steps, two evaluations, two diagnoses; written by the version before."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two workers, by method, and one with rounds to and from single ranks."""
    folder = tmp_path_factory.mktemp("runs")
    for name in (*methods.names(), "gtopk"):
        method = f"--method {name}" if name != "gtopk" else "--method dls --collective gtopk"
        more = "--steps 4 --diagnose-every 2 --eval-every 2 --trace-every 1 --workers 2"
        assert (
            train([*TINY.split(), *method.split(), *more.split(), "--out", f"{folder}/{name}"]) == 0
        )
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old" / "trace.h5"
    path.parent.mkdir()
    path.write_bytes(lzma.decompress(OLD.read_bytes()))
    return path


def test_the_page_has_the_table_of_columns() -> None:
    own = {name: methods.load(name).columns for name in methods.names()}
    assert schema.table(own) in (ROOT / "docs" / "trace.md").read_text()


def test_no_two_columns_have_a_name() -> None:
    own = {column for name in methods.names() for column in methods.load(name).columns}
    names = [column.name for column in {*schema.COLUMNS, *own}]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", [*methods.names(), "gtopk"])
def test_messages_say_where_every_byte_went(runs: Path, name: str) -> None:
    trace = reader.read(runs / name / "trace.h5")
    messages, steps = trace.messages, trace.steps
    assert len(messages["step"]) > 0
    for row, step in enumerate(steps["step"]):
        for rank in range(2):
            here = (messages["step"] == step) & (messages["rank"] == rank)
            assert messages["sent"][here].sum() == steps["payload_bytes"][row, rank]
            assert messages["received"][here].sum() == steps["received_bytes"][row, rank]


@pytest.mark.parametrize("name", [*methods.names(), "gtopk"])
def test_messages_are_in_order_and_so_are_their_times(runs: Path, name: str) -> None:
    messages = reader.read(runs / name / "trace.h5").messages
    assert messages["message"].tolist() == list(range(len(messages["message"])))
    order = list(zip(messages["step"], messages["rank"], strict=True))
    assert order == sorted(order)
    times = np.array([messages[each] for each in ("ready", "selected", "posted", "finished")])
    known = times[:, ~np.isnan(times[3])]
    assert known.shape[1] > 0
    assert (known[0] >= 0).all()
    assert (np.diff(known, axis=0) >= 0).all()


def test_messages_name_kinds_partners_and_buckets(runs: Path) -> None:
    dense = reader.read(runs / "dense" / "trace.h5").messages
    assert set(dense["kind"]) == {schema.ROUNDS.index("sum")}
    assert set(dense["bucket"]) == {0, 1}
    merged = reader.read(runs / "gtopk" / "trace.h5").messages
    swaps = merged["kind"] == schema.ROUNDS.index("swap")
    assert swaps.any()
    assert (merged["to"][swaps] == 1 - merged["rank"][swaps]).all()
    assert (merged["source"][~swaps] == -1).all()
    assert (merged["bucket"] == -1).any()  # of the adjustment


def test_a_skipped_steps_flag_is_a_message_too(tmp_path: Path) -> None:
    flags = f"{TINY} --steps 2 --on-nan skip --workers 2 --out {tmp_path}/run"
    assert train(flags.split()) == 0
    trace = reader.read(tmp_path / "run" / "trace.h5")
    flag = trace.messages["sent"][trace.messages["bucket"] == -1]
    assert 1 in flag
    sent = trace.messages["sent"].reshape(2, 2, -1).sum(axis=2)
    assert (sent == trace.steps["payload_bytes"]).all()


def test_a_methods_own_columns_are_recorded(runs: Path) -> None:
    with h5py.File(runs / "dls" / "trace.h5") as file:
        assert "reserve" in file["steps"]
        assert file["steps/reserve"].attrs["units"] == "values"
    with h5py.File(runs / "layerwise-topk" / "trace.h5") as file:
        assert "reserve" not in file["steps"]
    steps = reader.read(runs / "dls" / "trace.h5").steps
    assert (steps["reserve"] >= 0).all()
    assert (steps["reserve"] <= steps["k"]).all()
    assert steps["reserve"].sum() > 0


OWN = (
    Column("steps/temperature", PER_STEP, np.float64, "K", "of the room"),
    Column("steps/spin", PER_LAYER, np.int64, "1", "up or down"),
)


def test_columns_of_a_method_that_nobody_knows_are_read_kept_and_repaired(tmp_path: Path) -> None:
    path = tmp_path / "trace.h5"
    about = header()
    writer = Writer(path, Header(about.attributes, about.layers, columns_of(OWN)))
    own = {"temperature": np.arange(3.0), "spin": np.ones((3, RANKS, LAYERS), dtype=np.int64)}
    given = {name: values for name, values in rows(1, 3).items() if name[0] not in "kr"}
    del given["threshold"]
    writer.append("steps", given | own)
    with h5py.File(path, "r", locking=False, swmr=True) as file:
        assert "k" not in file["steps"]
    del writer  # as a killed program leaves it
    repair(path)
    found = reader.read(path)
    assert found.steps["temperature"].tolist() == [0, 1, 2]
    assert (found.steps["spin"] == 1).all()
    assert (found.steps["k"] == -1).all() and found.steps["k"].shape == (3, RANKS, LAYERS)
    assert np.isnan(found.steps["threshold"]).all()
    columns = {column.name: column for column in found.header.columns}
    assert columns["steps/spin"].axes == PER_LAYER and columns["steps/spin"].unit == "1"


def test_what_a_run_does_not_record_is_marked(tmp_path: Path) -> None:
    """Loss, epoch and learning rate belong to a trainer: a program without one leaves them out."""
    path = tmp_path / "trace.h5"
    without = ("steps/loss", "steps/epoch", "steps/lr")
    about = header()
    columns = columns_of(without=without)
    writer = Writer(path, Header(about.attributes, about.layers, columns))
    recorder = Recorder(local.alone(), None, columns)
    recorder.step(1, Row(0, 0, {}))
    names = {column.key for column in columns if column.group == "steps"}
    writer.append("steps", {name: values for name, values in rows(1, 2).items() if name in names})
    writer.close()
    steps = reader.read(path).steps
    assert np.isnan(steps["loss"]).all() and np.isnan(steps["lr"]).all()
    assert steps["epoch"].tolist() == [-1, -1]
    with h5py.File(path) as file:
        assert not {"loss", "epoch", "lr"} & set(file["steps"])
        assert file["steps"].attrs["signal"] == "payload_bytes"


# Old traces -----------------------------------------------------------------------------------


def test_older_traces_are_read(old: Path) -> None:
    trace = reader.read(old)
    assert trace.steps["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert trace.evals["step"].tolist() == trace.diagnostics["step"].tolist() == [3, 6]
    assert len(trace.messages["step"]) == 0
    assert (trace.steps["k"].sum(axis=2) == trace.steps["k"][0, 0].sum()).all()
    assert dls.load(old.parent)["steps/loss"].shape == (6, 2)


def test_tools_look_into_older_traces(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = old.parent / "page.html"
    assert inspect([str(old.parent), "--html", str(page)]) == 0
    assert "<svg" in page.read_text()
    assert inspect([str(old.parent), "--json"]) == 0
    assert '"steps": 6' in capsys.readouterr().out


def test_a_run_goes_on_with_an_older_trace(tmp_path: Path, old: Path) -> None:
    """Its steps are kept, and the new ones have all that the present schema records."""
    run = tmp_path / "run"
    flags = "--mlp-widths 8 --density 0.05 --batch-size 4 --threads 1 --backend numpy --workers 2"
    assert train([*flags.split(), "--steps", "6", "--out", str(run)]) == 0
    before = reader.read(old)
    (run / "trace.h5").write_bytes(old.read_bytes())
    assert train(["--workers", "2", "--resume", "--steps", "8", "--out", str(run)]) == 0
    trace = reader.read(run / "trace.h5")
    assert trace.steps["step"].tolist() == list(range(1, 9))
    assert (trace.steps["loss"][:6] == before.steps["loss"]).all()
    assert (trace.steps["reserve"][:6] == -1).all() and (trace.steps["reserve"][6:] >= 0).all()
    assert set(trace.messages["step"]) == {7, 8}
    with h5py.File(run / "trace.h5") as file:
        assert file.attrs["schema"] == schema.SCHEMA


# Many ranks -----------------------------------------------------------------------------------


class Many(local.Local):
    """One rank of many, which all record the same; it keeps what rank 0 receives at once."""

    def __init__(self, ranks: int) -> None:
        super().__init__(local.Room(1), 0)
        self.size, self.largest = ranks, 0

    def gather(self, values: np.ndarray) -> np.ndarray:
        self.largest = max(self.largest, values.nbytes * self.size)
        return np.broadcast_to(values, (self.size, *values.shape))

    def allgather(self, values: np.ndarray, what: str) -> Any:
        everyone = np.broadcast_to(values, (self.size, *values.shape))
        return type("Word", (), {"wait": lambda self: everyone})()


def test_a_flush_holds_no_more_than_its_limit(tmp_path: Path) -> None:
    ranks, layers, steps = 1024, 700, 2
    comm = Many(ranks)
    names = [f"l{number}" for number in range(layers)]
    numbers = {name: [1] * layers for name in ("size", "inputs", "outputs", "kernel", "positions")}
    attributes = {**header().attributes, "world_size": ranks}
    about = Header(attributes, {"name": names, "kind": ["linear"] * layers} | numbers)
    recorder = Recorder(comm, Writer(tmp_path / "trace.h5", about), about.columns)
    for step in range(1, steps + 1):
        columns = {
            "k": np.arange(layers) + step,
            "threshold": np.arange(layers) / step,
            "residual_norm": np.arange(layers) * 2.0,
        }
        seconds = dict.fromkeys(SECONDS, 0.25)
        message = Message(10, 20, ready=1.0, selected=2.0, posted=3.0, finished=4.0)
        row = Row(10, 20, seconds, columns=columns, messages=[(0, [message])], loss=step / 2)
        recorder.step(step, row, epoch=0, lr=0.1)
    recorder.close()
    assert 0 < comm.largest <= packing.LIMIT
    assert 2 * packing.LIMIT <= FLUSH_BYTES
    steps_read = reader.read(tmp_path / "trace.h5").steps
    for step in range(1, steps + 1):
        assert (steps_read["k"][step - 1] == np.arange(layers) + step).all()
        assert (steps_read["threshold"][step - 1] == np.arange(layers) / step).all()
    assert (steps_read["loss"] == np.array([[0.5], [1.0]])).all()


@pytest.mark.parametrize("limit", [1, 50, 10**6])
@pytest.mark.parametrize("ranks", [1, 3])
def test_columns_arrive_whole_whatever_the_limit(ranks: int, limit: int) -> None:
    shapes = {"a": (4,), "b": (4, 5), "c": (4, 5, 2), "d": (0,), "e": (0, 5)}

    def column(name: str, rank: int) -> np.ndarray:
        size = int(np.prod(shapes[name]))
        kind = np.int64 if name == "a" else np.float64
        return (np.arange(size) * (rank + 1)).astype(kind).reshape(shapes[name])

    def work(comm: Comm) -> dict[str, np.ndarray]:
        own = {name: column(name, comm.rank) for name in shapes}
        found = {name: np.full((ranks, *shapes[name]), -7, own[name].dtype) for name in shapes}
        for name, layers, values in packing.gathered(comm, own, limit):
            if values.ndim == 2:
                found[name][...] = values
            else:
                found[name][:, :, layers] = values
        return found

    first, *others = local.run(ranks, work)
    for name, shape in shapes.items():
        expected = np.stack([column(name, rank) for rank in range(ranks)])
        assert (first[name] == expected).all() and first[name].shape == (ranks, *shape)
        assert all((other[name] == -7).all() for other in others)


def test_ranks_with_unequal_numbers_of_messages(tmp_path: Path) -> None:
    """A round that is still under way may be in one rank's list and not in another's."""
    about = header()

    def work(comm: Comm) -> None:
        writer = Writer(tmp_path / "trace.h5", about) if comm.rank == 0 else None
        recorder = Recorder(comm, writer, about.columns)
        columns = {each: np.zeros(LAYERS) for each in ("k", "threshold", "residual_norm")}
        for step in (1, 2):
            some = [Message(sent=100 * step + 10 * comm.rank + n) for n in range(comm.rank + step)]
            row = Row(0, 0, dict.fromkeys(SECONDS, 0.0), columns=columns, messages=[(0, some)])
            recorder.step(step, row, epoch=0, lr=0.1)
        recorder.close()

    local.run(RANKS, work)
    messages = reader.read(tmp_path / "trace.h5").messages
    assert messages["sent"].tolist() == [100, 110, 111, 200, 201, 210, 211, 212]
    assert messages["step"].tolist() == [1, 1, 1, 2, 2, 2, 2, 2]
    assert np.isnan(messages["finished"]).all()


# Other programs -------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_opens_every_group(runs: Path, engine: str) -> None:
    path = runs / "dls" / "trace.h5"
    trace = reader.read(path)
    for group in GROUPS:
        with xarray.open_dataset(path, group=group, engine=engine) as found:
            for name, values in trace.group(group).items():
                if "/" not in name:
                    assert (found[name].values == values).all() or np.isnan(values).any(), name
                    assert found[name].attrs["units"]
    with xarray.open_dataset(path, group="steps/seconds", engine=engine) as found:
        assert dict(found.sizes) == {"step": 4, "rank": 2}
    with xarray.open_dataset(path, engine=engine) as found:
        assert found["layer"].values.tolist() == list(trace.header.layers["name"])
        assert found["rank"].values.tolist() == [0, 1]


def _axes(group: h5py.Group) -> Iterator[tuple[str, int]]:
    signal = group[group.attrs["signal"]]
    return zip(group.attrs["axes"], signal.shape, strict=True)


def test_viewers_of_nexus_find_what_to_draw(runs: Path) -> None:
    with h5py.File(runs / "dls" / "trace.h5") as file:
        assert file.attrs["NX_class"] == "NXroot"
        assert file[file.attrs["default"]].attrs["NX_class"] == "NXdata"
        for name in GROUPS:
            for axis, length in _axes(file[name]):
                assert axis == "." or len(file[name][axis]) == length


def test_load_gives_arrays_xarray_and_pandas(runs: Path) -> None:
    run = dls.load(runs / "dls")
    trace = reader.read(runs / "dls" / "trace.h5")
    assert (run["steps/threshold"] == trace.steps["threshold"]).all()
    assert run.config["density"] == 0.05 and run.ranks == 2
    assert "messages/sent" in run.names() and "dls: steps=4, ranks=2" in repr(run)
    dataset = run.xarray("steps")
    first = dataset["threshold"].sel(step=2, rank=1).values
    assert (first == trace.steps["threshold"][1, 1]).all()
    assert dataset["threshold"].attrs["units"] == "gradient"
    frame = run.pandas("steps")
    assert frame.loc[(3, 1), "loss"] == trace.steps["loss"][2, 1]
    layers = run.pandas("steps", per="layer")
    name = run.layers["name"][1]
    assert layers.loc[(4, 0, name), "k"] == trace.steps["k"][3, 0, 1]
    assert run.pandas("evals").loc[4, "accuracy"] == trace.evals["accuracy"][1]
    assert len(run.pandas("messages")) == len(trace.messages["step"])


def test_load_joins_what_went_on_with_other_ranks(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    assert train([*TINY.split(), *f"--steps 3 --workers 2 --out {out}".split()]) == 0
    more = f"--steps 5 --workers 1 --batch-size 8 --resume --out {out}"
    assert train(more.split()) == 0
    run = dls.load(out)
    assert run["steps/step"].tolist() == [1, 2, 3, 4, 5]
    assert run["steps/loss"].shape == (5, 2)
    assert np.isnan(run["steps/loss"]).tolist() == [[False, False]] * 3 + [[False, True]] * 2
    assert run["steps/k"][3:, 1].tolist() == [[-1] * len(run.layers["name"])] * 2
    numbers = run["messages/message"].tolist()
    assert numbers == list(range(len(run["messages/step"])))
    assert run.pandas("messages").index.is_unique


def test_load_says_what_is_wrong(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(TraceError, match="holds no trace"):
        dls.load(tmp_path)
    run = dls.load(runs / "dense")
    with pytest.raises(KeyError, match=r"steps/nothing.*steps/loss"):
        run["steps/nothing"]
    with pytest.raises(ValueError, match="there is no group 'step'; there are steps"):
        run.xarray("step")
    with pytest.raises(ValueError, match="per is 'phase', not one of step, rank, layer"):
        run.pandas("steps", per="phase")


def test_load_without_the_libraries(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(
        ImportError, match=r"^xarray is not installed; pip install 'dls\[analysis\]'"
    ):
        dls.load(runs / "dense").xarray()
