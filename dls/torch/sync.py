"""`attach`: a PyTorch model's gradients become the ranks' mean."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from dls.comm.base import Comm
from dls.exchange import methods, settings
from dls.exchange.exchanger import Row
from dls.exchange.methods import Method
from dls.exchange.methods.dense import Dense
from dls.torch import checkpoints, compiled, ranks, setup, states
from dls.torch.alone import Alone
from dls.torch.buffers import Buffers
from dls.torch.folder import Folders
from dls.torch.parameters import Tensor, Tracked, newcomers, tracked
from dls.torch.steps import Steps
from dls.torch.trace import Trace
from dls.torch.words import Words

_attached: weakref.WeakSet[Sync] = weakref.WeakSet()


def attach(
    model: Tensor,
    method: str = "dls",
    *,
    comm: Any = None,
    backend: str = "",
    bucket_size: int = setup.BUCKET_SIZE,
    overlap: bool = True,
    on_nan: str = "stop",
    scaler: Any = None,
    buffers: str = "mean",
    broadcast: bool = True,
    check_every: int = 100,
    threads: int = 0,
    timeout: float = 600.0,
    out: str | Path = "",
    trace_every: int = 1,
    diagnose_every: int = 0,
    **of_method: Any,
) -> Sync:
    """Let the ranks train this model together; every rank calls it with the same arguments.

        sync = dls.torch.attach(model, method="dls", density=0.01)   # after model.to(device)
        for x, y in loader:
            loss_of(model(x), y).backward()
            sync.wait()              # every parameter's grad is now the mean over the ranks
            optimizer.step()
            optimizer.zero_grad()

    method, density, …: as the flags of `dls.train`; a method's own settings by their names. comm:
    an mpi4py communicator; None: all ranks that mpirun has started, or this process alone. backend:
    "numba", "numpy" or "cupy"; unless given, "cupy" for a model on a CUDA device, else "numba".
    bucket_size: send neighbouring layers as one message once they hold so many values. overlap:
    send gradients during the backward pass, else all in `wait`. on_nan: "stop" raises
    NonFiniteError; "skip" leaves the step out on all ranks: every grad is None after `wait`.
    scaler: the GradScaler that multiplies the loss; where a rank's gradient is infinite, all ranks
    skip the step. buffers: what each rank has of batch norm's running statistics after a step, the
    "mean", those of "rank0", or its own ("local"). broadcast: begin with rank 0's weights and
    buffers. check_every: compare the ranks' weights after so many steps; 0: never. threads: of the
    backend, 0: this rank's share of the cores, which PyTorch is held to as well unless
    OMP_NUM_THREADS is set. timeout: seconds that a rank waits for others at most. out: a folder for
    the run's trace, which `python -m dls.inspect` reads; every trace_every steps are recorded, and
    every diagnose_every steps are looked at closely (0: none).

    ValueError, on all ranks, where an argument is wrong or ranks differ.
    """
    options = setup.Options(
        comm=comm,
        backend=backend,
        bucket_size=bucket_size,
        overlap=overlap,
        on_nan=on_nan,
        scaler=scaler,
        buffers=buffers,
        broadcast=broadcast,
        check_every=check_every,
        threads=threads,
        timeout=timeout,
        out=out,
        trace_every=trace_every,
        diagnose_every=diagnose_every,
    )
    return Sync(model, method, options, of_method)


class Sync:
    """What `attach` returns. `steps`: finished steps; `row`: of the last one bytes and seconds."""

    def __init__(
        self, model: Tensor, method: str, options: setup.Options, of_method: Mapping[str, Any]
    ) -> None:
        self.model, self.parameters = model, tracked(model)
        _check_unattached(self.parameters)
        self.method, self.options = method, options
        kind = methods.find(method)
        own = settings.build(kind.Settings, of_method)
        self.comm = ranks.comm(options.comm, options.timeout)
        self._owns = not isinstance(options.comm, Comm)
        same = {"method": method, "settings": own, **options.same()}
        ranks.check_same(self.comm, same, [each.describe() for each in self.parameters])
        tensors = [each.tensor for each in self.parameters]
        ranks.check_threads(self.comm, tensors, options.overlap)
        self._buffers = Buffers(model, options.buffers, self.comm)
        found = setup.backend(options.backend, tensors[0], self.comm, options.threads)
        self.backend, self.threads = found
        self._lock, self._thread = threading.RLock(), threading.get_ident()
        with self._computing():
            self.stepper = self._steps(kind, own)
        if options.broadcast:
            ranks.copy_from_rank_0(self.comm, [*model.parameters(), *model.buffers()])
        self.words = Words(self.comm, self.parameters, options.check_every)
        several = options.overlap and self.comm.size > 1
        self._compiled = compiled.Watch(model) if several else None
        self.folders = Folders(self.comm)
        self.resumed_at: int | None = None
        self._trace: Trace | None = None
        if options.out:
            self._trace = Trace(self, self.folders.open(options.out), options.trace_every)
        self._held = 0
        self.row: Row | None = None
        self._opened = ExitStack()
        self._listen()
        with self._computing():
            self._start_clock()
        _attached.add(self)

    def _steps(self, kind: type[Method], own: Any) -> Steps:
        """The exchange of the gradients. own: the method's settings."""
        options = self.options
        alone = self.comm.size == 1 and kind is Dense
        return (Alone if alone else Steps)(
            self.parameters,
            kind,
            own,
            self.comm,
            self.backend,
            overlap=options.overlap,
            check=self._check_newcomers,
            **options.of_steps(),
        )

    def _listen(self) -> None:
        """Be told of every gradient that grows, and for a trace of the forward pass."""
        for number, each in enumerate(self.parameters):
            hook = each.tensor.register_post_accumulate_grad_hook(self._hook(number))
            self._opened.callback(hook.remove)
        if self._trace:
            forward = self.model.register_forward_pre_hook(self._forward_begins())
            self._opened.callback(forward.remove)

    # --- a step --------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Finished steps, those that were skipped included."""
        return self.stepper.finished

    def wait(self) -> bool:
        """End the step: return when every parameter's `grad` is the mean over the ranks.

        Every rank calls it once a step, also one that has had no backward pass: its gradient counts
        as zero. Returns False where the step is left out by all ranks, as one of them met NaN or
        infinity (on_nan "skip", or with a scaler).
        """
        self._check()
        if self._held:
            raise ValueError("wait is called outside of no_sync")
        with self._computing():
            self.stepper.leave_all()
            self.words.post(self.stepper.finished)
            self._buffers.post()
            step = self.stepper.finished + 1
            self.row = self.stepper.end(record=self._trace is not None and self._trace.due(step))
            self.words.hear()
            self._buffers.apply()
            if self.row.met_by and self.options.scaler is None:
                for each in self.parameters:
                    each.tensor.grad = None
            else:
                self.stepper.hand_over()
            self.stepper.stop_clock()
            if self._trace:
                self._trace.record(step, self.row)
            self._start_clock()
        if self._compiled:
            self._compiled.look(self.comm.rank)
        return not self.row.met_by

    def _check_newcomers(self) -> None:
        """ValueError where a parameter would be left out."""
        if name := next(newcomers(self.model, self.parameters), ""):
            raise ValueError(
                f"{name} was not a trainable parameter when the model was attached: take"
                " state = sync.state_dict(), call sync.close(), attach the model again and give the"
                " new sync load_state_dict(state, strict=False)"
            )

    def _start_clock(self) -> None:
        following, every = self.stepper.finished + 1, self.options.diagnose_every
        self.stepper.start_clock(with_timeline=every > 0 and following % every == 0)

    def log(self, **values: Any) -> None:
        """For the trace: loss, epoch or lr of the step that the next `wait` ends.

        The loss is this rank's own; the others are the same on all ranks. Nothing is done without
        `out`. ValueError for another name.
        """
        if self._trace:
            self._trace.log(values)

    def log_evaluation(self, loss: float, accuracy: float) -> None:
        """For the trace: what an evaluation after the last step gave; every rank calls it."""
        if self._trace:
            self._trace.evaluation(self.steps, loss, accuracy)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in this block add to `grad` and send nothing: for all of a step's passes
        but the last.
        """
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def _hook(self, number: int) -> Any:
        own = weakref.ref(self)

        def grown(_: Tensor) -> None:
            sync = own()
            if sync is not None and not sync._held:
                sync._grown(number)

        return grown

    def _forward_begins(self) -> Any:
        own = weakref.ref(self)

        def begins(*_: Any) -> None:
            if torch.compiler.is_compiling():  # what is traced has no phases
                return
            sync = own()
            if sync is not None and not sync.stepper.begun:
                with sync._computing():
                    sync.stepper.enter("forward")

        return begins

    def _grown(self, number: int) -> None:
        if not self.comm.any_thread and threading.get_ident() != self._thread:
            raise RuntimeError(
                "a backward pass runs in another thread than attach did, and MPI was started for"
                " one alone: start it with MPI.Init_thread(MPI.THREAD_MULTIPLE)"
            )
        with self._computing():
            self.stepper.fired(number)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """One thread at a time, without a graph and in the order of PyTorch's own work."""
        stream = setup.in_stream_of(self.parameters[0].tensor, self.backend)
        with self._lock, torch.no_grad(), stream:
            yield

    # --- between steps -------------------------------------------------------------------------

    def state_dict(self) -> states.State:
        """What this rank needs to go on with the same bits, by names of parameters and layers; its
        residual is its own, so each rank saves and loads its own.
        """
        with self._computing():
            return states.save(self.stepper, self.method)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Go on from what `state_dict` gave on this rank; every rank calls it, between two steps.

        strict: model, method and number of ranks are the same; else what belongs to parameters that
        are still there is taken over. ValueError, on all ranks.
        """
        self._check()
        with self._computing():
            states.load(self.stepper, state, self.method, strict)

    def save(self, folder: str | Path, *, keep: int = 2, **parts: Any) -> Path:
        """Write a checkpoint to FOLDER/checkpoints and keep the newest `keep` (0: all); every rank
        calls it, between two steps.

            sync.save("runs/mine", optimizer=optimizer, schedule=schedule)

        parts: whatever has state_dict and load_state_dict and is the same on all ranks; the model
        is among them. ValueError or OSError, on all ranks.
        """
        self._check()
        if self._trace:
            self._trace.flush()
        with self._computing():
            return checkpoints.save(self, folder, keep, parts)

    def resume(self, folder: str | Path, **parts: Any) -> int:
        """Go on from the newest whole checkpoint in a folder, on any number of ranks; every rank
        calls it with the parts that `save` was given.

        Returns how many steps are finished: 0 where there is no checkpoint. ValueError, on all
        ranks.
        """
        self._check()
        with self._computing():
            self.resumed_at = checkpoints.resume(self, self.folders.open(folder), parts) or None
            self._start_clock()
        return self.resumed_at or 0

    def close(self) -> None:
        """Take part no more, between two steps; every rank calls it.

        The parameters and their grads stay as they are.
        """
        if self in _attached:
            self._opened.close()
            _attached.discard(self)
            if self._trace:
                self._trace.close()
            self.folders.close()
            self.stepper.exchanger.finish()
            if self._owns:
                self.comm.finish()

    def __enter__(self) -> Sync:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is None:
            self.close()
        else:
            self._opened.close()
            _attached.discard(self)

    def _check(self) -> None:
        if self not in _attached:
            raise RuntimeError("this sync is closed: attach the model again")


def _check_unattached(parameters: list[Tracked]) -> None:
    """ValueError where another sync exchanges one of them."""
    taken = {id(each.tensor) for sync in _attached for each in sync.parameters}
    for each in parameters:
        if id(each.tensor) in taken:
            raise ValueError(f"{each.name} is attached already: close that sync first")
