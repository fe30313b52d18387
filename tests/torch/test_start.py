"""How dls.torch is imported, and how its ranks are started."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import dls.torch
from dls.comm import local
from dls.torch import ranks
from reference.ops import NonFiniteError
from tests.launch import ROOT
from tests.torch.cases import grads, loss, net, raises

WITHOUT = """
import sys
sys.modules["torch"] = None
import dls
dls.Exchange({"a": 4}, density=0.5, backend="numpy")([1.0, 2.0, 3.0, 4.0])
try:
    import dls.torch
except ImportError as error:
    print(error)
"""


def test_without_pytorch_one_line_says_what_to_install(tmp_path: Path) -> None:
    """And the core neither needs nor imports it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "dls.torch needs PyTorch: pip install 'dls[torch]'\n"


def test_an_old_pytorch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.3.1+cu121")
    words = "dls.torch needs PyTorch 2.4 or newer, and this is 2.3.1+cu121"
    raises(ImportError, words, dls.torch.version.check)


@pytest.mark.parametrize("method", ["dls", "dense", "global-topk"])
def test_one_process_alone_needs_no_launcher(method: str) -> None:
    """At density 1 its mean is its own gradient."""
    options = {} if method == "dense" else {"density": 1.0}
    model, other = net(), net()
    sync = dls.torch.attach(model, method, backend="numpy", **options)
    for step in range(3):
        for each in (model, other):
            each.zero_grad(set_to_none=step == 1)
            loss(each, 0, step).backward()
        sync.wait()
        for name, gradient in grads(other).items():
            assert torch.equal(grads(model)[name], gradient), name
    assert sync.row is not None and sync.row.received_bytes == 0
    sync.close()


def test_one_process_alone_takes_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dls.torch.device() == torch.device("cpu") or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert dls.torch.device() == torch.device("cuda:0")


def test_one_process_alone_looks_for_nan_as_well() -> None:
    for on_nan in ("stop", "skip"):
        model = net()
        sync = dls.torch.attach(model, "dense", on_nan=on_nan, backend="numpy")
        (loss(model, 0, 0) * float("nan")).backward()
        if on_nan == "stop":
            raises(NonFiniteError, "NaN or infinity in the gradient of layer 0", sync.wait)
        else:
            assert not sync.wait()
            assert all(parameter.grad is None for parameter in model.parameters())
        model.zero_grad()
        model[0].requires_grad_(False)
        loss(model, 0, 0).backward()
        assert sync.wait()
        assert model[0].weight.grad is None
        sync.close()


def test_calls_from_a_thread_that_mpi_does_not_allow_are_refused() -> None:
    comm = local.alone()
    comm.any_thread = False
    on_a_card = [SimpleNamespace(device=torch.device("cuda:1"))]
    words = "MPI was started for calls from its first thread alone, and gradients of cuda:1 come in"
    raises(ValueError, words, lambda: ranks.check_threads(comm, on_a_card, overlap=True))
    ranks.check_threads(comm, on_a_card, overlap=False)
    model = net()
    sync = dls.torch.attach(model, comm=comm, backend="numpy", density=0.5)
    loss(model, 0, 0).backward()
    sync.wait()
    said: list[str] = []

    def elsewhere() -> None:
        words = "a backward pass runs in another thread than attach did"
        said.append(raises(RuntimeError, words, loss(model, 0, 1).backward))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert said


def test_torchrun_is_refused_with_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    words = (
        "torchrun has started 4 processes, which MPI cannot join into one run: start the program"
    )
    message = raises(ValueError, words, lambda: dls.torch.attach(net(), backend="numpy"))
    assert "mpirun -n 4 python" in message
    monkeypatch.setenv("WORLD_SIZE", "1")
    dls.torch.attach(net(), backend="numpy").close()
