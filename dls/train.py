"""`dls train` and `python -m dls.train`: data-parallel training with sparsified gradients.

A step is three calls, in `_step`: differentiate, exchange, update. How gradients are exchanged is
the business of the methods, in `dls/exchange/methods/`.
"""

from __future__ import annotations

from dls.program.signals import StopRequest

REQUEST = StopRequest() if __name__ == "__main__" else None
"""Listens to signals. It is made before the other imports, which take a while."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

import dls
from dls import traffic
from dls.cli import UsageError
from dls.comm import launcher, local
from dls.comm.base import Comm
from dls.comm.errors import MissingMPI, RankLost
from dls.exchange.columns import Column
from dls.optim import learning_rate
from dls.program import flags, guessing, output, plugins, resume, sources, startup
from dls.program.consensus import Consensus
from dls.program.failure import fail, refuse
from dls.program.flags import CommandLine
from dls.program.heartbeat import Heartbeat, previous_failure
from dls.program.progress import Reporter
from dls.program.run import Run
from dls.record import checkpoint
from dls.record.recorder import Recorder
from dls.record.repair import go_on
from dls.record.schema import LAYER_FIELDS, Header, columns_of
from dls.record.writer import Writer
from reference.ops import NonFiniteError

COMPILING = "compiling, once on this machine, about 30 s"
"""A line for the user before the first step, where the backend must be compiled."""


def main(argv: list[str] | None = None, request: StopRequest | None = None) -> int:
    """Train as the command line says. Returns the exit status, the same on all ranks.

    That is 0: done, 75: stopped, 2: bad usage, 1: another failure. argv: by default sys.argv.
    request: listens to signals; by default one that listens until the end.
    """
    argv = sys.argv[1:] if argv is None else argv
    with ExitStack() as opened:
        opened.enter_context(output.unheard(OSError))
        request = request or opened.enter_context(StopRequest())
        try:
            refused = plugins.load(argv)
            if refused is not None and not launcher.launched(os.environ):
                raise refused  # other ranks, if there were any, would wait
            timeout, workers = flags.before_ranks_meet(argv)
            if workers:
                return _main_of_workers(argv, workers, request, refused)
            comm = _join(timeout)
        except SystemExit:  # --help or --version
            return 0
        except (MissingMPI, UsageError) as error:
            return refuse(error, 0 if launcher.speaks(os.environ) else 1)
        return _main(argv, comm, request, refused)


def _main_of_workers(
    argv: list[str], workers: int, request: StopRequest, refused: UsageError | None
) -> int:
    """`_main` with workers in this process. UsageError under a launcher of several processes."""
    if launcher.several(os.environ):
        raise UsageError(
            "--workers trains with several workers in one process; start it without mpirun, or"
            " leave it out"
        )
    try:
        return local.run(workers, lambda comm: _main(argv, comm, request, refused))[0]
    except local.Ended as ended:
        return ended.status


def _main(argv: list[str], comm: Comm, request: StopRequest, refused: UsageError | None) -> int:
    try:
        command = startup.read_command_line(argv, comm, request, refused)
        run = startup.prepare(command, comm)
    except UsageError as error:
        return refuse(error, comm.rank)
    except BaseException as error:  # also SystemExit: the other ranks must end, too
        return fail(error, "at the start", None, comm)
    while True:
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # infinities are found and reported
                status = _attempt(run, comm, request)
            run.lock.release()
            return comm.end(status)
        except RankLost:
            run, comm = _without_lost(run, comm, command)
        except local.Ended:
            run.lock.release()
            raise


def _join(timeout: float) -> Comm:
    """Meet the other ranks. If one of them dies before all have met, this one ends too.

    UsageError where the launcher has started more processes than MPI sees.
    """
    from dls.comm.world import World  # here: it loads MPI, which workers do not need

    try:
        comm = World(timeout)
    except RankLost as error:
        print(f"dls.train: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # MPI's finalization would wait for the dead rank
    if words := launcher.alone(comm.size, comm.library, os.environ):
        raise UsageError(words)
    return comm


def _attempt(run: Run, comm: Comm, request: StopRequest) -> int:
    """Train, and report a failure. Returns the exit status.

    RankLost, with everything closed, where a rank died and the others go on.
    """
    reporter = Reporter(run.config.progress, run.finished, run.total, quiet=comm.rank != 0)
    with ExitStack() as opened:
        opened.callback(reporter.close)
        try:
            return train(run, comm, request, reporter, opened)
        except BaseException as error:
            reporter.close()
            if run.config.elastic and isinstance(error, RankLost):
                raise
            return fail(error, f"step {reporter.at}", run.out, comm)


def train(run: Run, comm: Comm, request: StopRequest, reporter: Reporter, opened: ExitStack) -> int:
    """Take the remaining steps, and record, evaluate and write checkpoints. Returns the status."""
    step = run.finished
    consensus = Consensus(comm, request, run.states.hash, run.config.check_every)
    before = comm.from_rank_0(lambda: previous_failure(run.out))
    heartbeat = Heartbeat(run.out, comm, run.finished)
    opened.callback(heartbeat.leave)
    columns = columns_of(run.exchanger.method.columns)
    recorder = Recorder(comm, _open_trace(run, comm, columns), columns)
    opened.callback(recorder.leave)
    for line in (*run.notes, *before, *_opening(run, comm), *_warnings(run, comm)):
        reporter.say(line)
    for step in range(run.finished + 1, run.total + 1):
        reporter.at = step
        consensus.speak(finished=step - 1)
        _step(run, recorder, reporter, step)
        stop = consensus.hear()  # from here on `step` steps are finished
        heartbeat.beat(step)
        if step == run.total or _evaluation_due(run, step):
            _evaluate(run, comm, recorder, reporter, step)
        if stop or step == run.total or _due(step, run.config.checkpoint_every):
            consensus.confirm(step)
            recorder.flush()
            _checkpoint(run, reporter, comm, step)
        if stop:
            break
    recorder.close()
    if run.config.elastic:
        comm.part()
    heartbeat.end(step)
    if step < run.total:
        reporter.stopped(step, run.out, comm.size)
        return os.EX_TEMPFAIL
    reporter.done(run.out, traffic.ring_bytes(run.task.model.parameters.size, comm.size))
    return 0


def _without_lost(run: Run, comm: Comm, command: CommandLine) -> tuple[Run, Comm]:
    """The run at its newest checkpoint, on the ranks that are left.

    Ends this rank where those that are left are not the majority.
    """
    while True:
        try:
            left, lost = comm.survivors()
            again = startup.prepare(resume.without_lost(command, run, left.size), left, run.lock)
            ranks = "rank" if len(lost) == 1 else "ranks"
            note = f"lost: {ranks} {', '.join(map(str, lost))} of {comm.size}"
            return replace(again, notes=(note, *again.notes)), left
        except RankLost:
            continue  # another rank died meanwhile
        except BaseException as error:
            sys.exit(fail(error, "after the loss of a rank", run.out, comm))


def _step(run: Run, recorder: Recorder, reporter: Reporter, step: int) -> None:
    """Take training step number `step`, which follows `step - 1` finished ones, and record it."""
    finished = step - 1
    lr = learning_rate(run.config, finished, run.total)
    task, exchanger, clock = run.task, run.exchanger, run.exchanger.clock
    with_timeline = _due(step, run.config.diagnose_every)
    clock.restart(timeline_of=len(exchanger.layout) if with_timeline else 0)
    loss = task.differentiate(run.batches, finished, exchanger)
    for span in exchanger.arrivals():
        with clock.phase("update"):
            run.optimizer.apply(span, exchanger.update[span], lr)
    recorded = _due(step, run.config.trace_every)
    row = exchanger.end(recorded)
    if row.met_by:
        task.undo()
        reporter.skipped(step, row.met_by)
    else:
        row.loss = loss
    if recorded:
        epoch = run.batches.epoch_and_batch(finished)[0]
        recorder.step(step, row, epoch=epoch, lr=lr)
    if row.diagnosis:
        recorder.diagnosis(step, row.diagnosis)
    reporter.step(step, row.loss, row.payload_bytes, row.received_bytes)


def _due(finished: int, every: int) -> bool:
    """Whether something that is done every so many steps is done now; 0: never."""
    return every > 0 and finished % every == 0


def _evaluation_due(run: Run, finished: int) -> bool:
    """Whether to evaluate now: as often as is set, or at the end of each epoch."""
    if run.config.eval_every:
        return _due(finished, run.config.eval_every)
    return run.batches.epoch_and_batch(finished)[1] == 0


def _evaluate(run: Run, comm: Comm, recorder: Recorder, reporter: Reporter, finished: int) -> None:
    loss, accuracy = run.task.evaluate(run.dataset, comm)
    recorder.evaluation(finished, loss, accuracy)
    sparse = run.exchanger.method.density < 1
    warning = guessing.warning(loss, accuracy, run.dataset, sparse)
    epoch = run.batches.epoch_and_batch(finished - 1)[0] + 1
    reporter.evaluation(finished, epoch, loss, accuracy, warning)


def _checkpoint(run: Run, reporter: Reporter, comm: Comm, finished: int) -> None:
    if not run.backend.ops.all_finite(run.task.model.parameters):
        raise NonFiniteError("the weights are not finite; no checkpoint is written")
    shared, own = (run.states.save(shared) for shared in (True, False))
    about = checkpoint.Checkpoint(
        checkpoint.place(run.out, finished),
        comm.size,
        run.batches.position(finished),
        run.config.to_toml(),
        tuple((layer.name, layer.size) for layer in run.task.model.layers),
        run.data,
        run.environment,
    )
    for line in checkpoint.save(about, shared, own, run.config.keep_checkpoints, comm):
        reporter.say_once(line)


def _open_trace(run: Run, comm: Comm, columns: tuple[Column, ...]) -> Writer | None:
    """The trace's writer, on rank 0."""
    layers = {
        name: [getattr(layer, name) for layer in run.task.model.layers]
        for name in ("name", *LAYER_FIELDS)
    }
    attributes = {
        "config": run.config.to_toml(),
        "version": dls.__version__,
        "commit": sources.commit(run.config.method) if comm.rank == 0 else "",
        "sources": [sources.state_of_run(run.config.method).to_text()] if comm.rank == 0 else [],
        "world_size": comm.size,
        "backend": run.backend.name,
        "seed": run.config.seed,
        "hosts": comm.allgather_objects(comm.host),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": run.data,
        **run.environment,
    }
    header = Header(attributes, layers, columns)
    return None if comm.rank else go_on(run.out, run.finished, header)


def _opening(run: Run, comm: Comm) -> Sequence[str]:
    """What is about to happen, in one line or two."""
    c = run.config
    ranks = "1 rank" if comm.size == 1 else f"{comm.size} ranks"
    resumed = f" from step {run.finished} on" if run.finished else ""
    about = (
        f"{c.method} at density {run.exchanger.method.density:g}: {c.model}"
        f" ({run.exchanger.layout.n:,} parameters) on {c.dataset}, {ranks}, {run.backend.name},"
        f" {run.total} steps{resumed}; writing to {run.out}"
    )
    return [about] if run.backend.compiled or run.backend.notes else [about, COMPILING]


def _warnings(run: Run, comm: Comm) -> Iterator[str]:
    """A line where sparse messages bring a rank more bytes than a dense Allreduce would."""
    received = run.exchanger.method.bytes_received()
    ring = traffic.ring_bytes(run.exchanger.layout.n, comm.size)
    if received > ring:
        yield (
            f"warning: of {comm.size} ranks each receives about {traffic.readable(received)} a"
            f" step, and would receive {traffic.readable(ring)} in a ring Allreduce of the whole"
            ' gradient; what to do: docs/cluster.md, "Many ranks"'
        )


if __name__ == "__main__":
    sys.exit(main(request=REQUEST))
