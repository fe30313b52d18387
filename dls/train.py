"""`python -m dls.train`: data-parallel training with sparsified gradients.

A step is three calls, in `_step`: differentiate, exchange, update. What a method makes of a
gradient is its `exchange`, in `dls/exchange/methods/`.
"""

from __future__ import annotations

from dls.program.signals import StopRequest

REQUEST = (
    StopRequest() if __name__ == "__main__" else None
)  # before other imports: signals may come while those go on

import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

import dls
from dls import traffic
from dls.cli import UsageError
from dls.comm import launcher, local
from dls.comm.base import Comm
from dls.comm.errors import ExchangeError, MissingMPI, RankLost
from dls.exchange.columns import Column
from dls.optim import learning_rate
from dls.program import flags, guessing, output, plugins, resume, sources, startup
from dls.program.consensus import Consensus, DivergenceError
from dls.program.flags import CommandLine
from dls.program.heartbeat import Heartbeat, last_words
from dls.program.progress import Reporter
from dls.program.run import Run
from dls.record import checkpoint
from dls.record.checkpoint import CheckpointError
from dls.record.files import described, one_line
from dls.record.recorder import Recorder
from dls.record.repair import go_on
from dls.record.schema import LAYER_FIELDS, Header, TraceError, columns_of
from dls.record.writer import Writer
from reference.ops import NonFiniteError
from reference.wire import MessageError

KNOWN = (
    CheckpointError,
    DivergenceError,
    ExchangeError,
    KeyboardInterrupt,
    MessageError,
    NonFiniteError,
    OSError,
    TraceError,
)
"""Errors whose own words are enough; any other is a mistake in the program, and leaves its
traceback.
"""
ADVICE: dict[type[BaseException], str] = {
    NonFiniteError: "; a lower --lr, --clip-norm or --on-nan skip may help"
}
"""What to do about some errors."""
COMPILING = "compiling, once on this machine, about 30 s"
FIRST_WORD = 5.0
"""Seconds that a failing rank leaves to the one that failed first, whose abort ends them all."""
LATER = 0.1
"""Seconds by which each rank lets the one before it speak first, where no file can tell which
failed first.
"""


def main(argv: list[str] | None = None, request: StopRequest | None = None) -> int:
    """Train as the command line says.

    Exit status, the same on all ranks: 0 done, 75 stopped, 2 bad usage, 1 other failures.

    A program that calls it has its signals back afterwards, unless it gives a `request` of its own.
    """
    argv = sys.argv[1:] if argv is None else argv
    with ExitStack() as opened:
        opened.enter_context(output.unheard(OSError))
        request = request or opened.enter_context(StopRequest())
        try:
            refused = plugins.load(argv)
            if refused is not None and not launcher.launched(os.environ):
                raise refused  # there is nobody else to hear of it
            timeout, workers = flags.before_ranks_meet(argv)
            if workers:
                return _main_of_workers(argv, workers, request, refused)
            comm = _join(timeout)
        except SystemExit:  # --help or --version
            return 0
        except (MissingMPI, UsageError) as error:
            return _refuse(error, 0 if launcher.speaks(os.environ) else 1)
        return _main(argv, comm, request, refused)


def _main_of_workers(
    argv: list[str], workers: int, request: StopRequest, refused: UsageError | None
) -> int:
    """`_main` on so many workers in this process.

    UsageError where a launcher has started several.
    """
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
        return _refuse(error, comm.rank)
    except BaseException as error:  # also an exit, which the other ranks would wait for
        return _fail(error, "at the start", None, comm)
    while True:
        try:
            with np.errstate(
                over="ignore", invalid="ignore"
            ):  # what overflows is found as infinity, and named
                status = _attempt(run, comm, request)
            run.lock.release()
            return comm.end(status)
        except RankLost:
            run, comm = _without_lost(run, comm, command)
        except local.Ended:
            run.lock.release()
            raise


def _refuse(error: Exception, rank: int) -> int:
    """Status 2, and one line from one rank."""
    if rank == 0:
        print(f"dls.train: {one_line(str(error))}", file=sys.stderr)
    return 2


def _join(timeout: float) -> Comm:
    """This rank's place in the world. Where another dies before all are there, this one ends too.

    UsageError where the launcher has started more ranks than there are in it.
    """
    from dls.comm.world import World  # here, as it loads MPI, which workers do without

    try:
        comm = World(timeout)
    except RankLost as error:
        print(f"dls.train: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # the library's own end would wait
    if words := launcher.alone(comm.size, comm.library, os.environ):
        raise UsageError(words)
    return comm


def _attempt(run: Run, comm: Comm, request: StopRequest) -> int:
    """Train, and report whatever ends that badly.

    RankLost, with nothing left open, where the others go on without a rank.
    """
    reporter = Reporter(run.config.progress, run.first, run.total, quiet=comm.rank != 0)
    with ExitStack() as opened:
        opened.callback(reporter.close)
        try:
            return train(run, comm, request, reporter, opened)
        except BaseException as error:
            reporter.close()
            if run.config.elastic and isinstance(error, RankLost):
                raise
            return _fail(error, f"step {reporter.at}", run.out, comm)


def train(run: Run, comm: Comm, request: StopRequest, reporter: Reporter, opened: ExitStack) -> int:
    """Take the steps that are left; record, evaluate, write checkpoints on the way.

    Returns the exit status.
    """
    step = run.first
    consensus = Consensus(comm, request, run.states.hash, run.config.check_every)
    before = comm.from_rank_0(lambda: last_words(run.out))
    heartbeat = Heartbeat(run.out, comm, run.first)
    opened.callback(heartbeat.leave)
    columns = columns_of(run.exchanger.method.columns)
    recorder = Recorder(comm, _open_trace(run, comm, columns), columns)
    opened.callback(recorder.leave)
    for line in (*run.notes, *before, *_opening(run, comm), *_warnings(run, comm)):
        reporter.say(line)
    for step in range(run.first + 1, run.total + 1):
        reporter.at = step
        consensus.speak(step - 1)
        _step(run, recorder, reporter, step)
        stop = consensus.hear()
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
    """The run at its last checkpoint, among the ranks that are left.

    Those that are not most of the ranks end here.
    """
    while True:
        try:
            left, lost = comm.survivors()
            again = startup.prepare(resume.without_lost(command, run, left.size), left, run.lock)
            note = f"lost: rank{'s' * (len(lost) > 1)} {', '.join(map(str, lost))} of {comm.size}"
            return replace(again, notes=(note, *again.notes)), left
        except RankLost:
            continue  # another one, meanwhile
        except BaseException as error:
            sys.exit(_fail(error, "after the loss of a rank", run.out, comm))


def _step(run: Run, recorder: Recorder, reporter: Reporter, step: int) -> None:
    """Training step number `step`, from its mini-batch to its row in the trace."""
    lr, record = learning_rate(run.config, step - 1, run.total), _due(step, run.config.trace_every)
    task, exchanger, clock = run.task, run.exchanger, run.exchanger.clock
    clock.restart(timeline_of=len(exchanger.layout) if _due(step, run.config.diagnose_every) else 0)
    loss = task.differentiate(run.batches, step - 1, exchanger)
    for span in exchanger.arrivals():
        with clock.phase("update"):
            run.optimizer.apply(span, exchanger.update[span], lr)
    row = exchanger.end(record)
    if row.met_by:
        task.undo()
        reporter.skipped(step, row.met_by)
    else:
        row.loss = loss
    if record:
        epoch = run.batches.epoch_and_batch(step - 1)[0]
        recorder.step(step, row, epoch=epoch, lr=lr)
    if row.diagnosis:
        recorder.diagnosis(step, row.diagnosis)
    reporter.step(step, row.loss, row.payload_bytes, row.received_bytes)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _evaluation_due(run: Run, step: int) -> bool:
    """As often as is set, or at the end of each epoch."""
    return (
        _due(step, run.config.eval_every)
        if run.config.eval_every
        else run.batches.epoch_and_batch(step)[1] == 0
    )


def _evaluate(run: Run, comm: Comm, recorder: Recorder, reporter: Reporter, step: int) -> None:
    loss, accuracy = run.task.evaluate(run.dataset, comm)
    recorder.evaluation(step, loss, accuracy)
    warning = guessing.warning(loss, accuracy, run.dataset, sparse=run.exchanger.method.density < 1)
    reporter.evaluation(step, run.batches.epoch_and_batch(step - 1)[0] + 1, loss, accuracy, warning)


def _checkpoint(run: Run, reporter: Reporter, comm: Comm, step: int) -> None:
    if not run.backend.ops.all_finite(run.task.model.parameters):
        raise NonFiniteError("the weights are not finite; no checkpoint is written")
    shared, own = (run.states.save(shared) for shared in (True, False))
    layers = tuple((layer.name, layer.size) for layer in run.task.model.layers)
    position, folder = run.batches.position(step), checkpoint.place(run.out, step)
    settings = run.config.to_toml()
    about = checkpoint.Checkpoint(
        folder, comm.size, position, settings, layers, run.data, run.environment
    )
    for line in checkpoint.save(about, shared, own, run.config.keep_checkpoints, comm):
        reporter.say_once(line)


def _open_trace(run: Run, comm: Comm, columns: tuple[Column, ...]) -> Writer | None:
    """Rank 0's writer."""
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
    return None if comm.rank else go_on(run.out, run.first, header)


def _opening(run: Run, comm: Comm) -> Sequence[str]:
    c = run.config
    resumed = f" from step {run.first} on" if run.first else ""
    about = (
        f"{c.method} at density {run.exchanger.method.density:g}: {c.model}"
        f" ({run.exchanger.layout.n:,} parameters) on {c.dataset}, {comm.size}"
        f" rank{'s' * (comm.size > 1)}, {run.backend.name}, {run.total} steps{resumed}; writing to"
        f" {run.out}"
    )
    return [about] if run.backend.compiled or run.backend.notes else [about, COMPILING]


def _warnings(run: Run, comm: Comm) -> Iterator[str]:
    """Where the ranks are so many that sparse messages move more than the whole gradient would."""
    received, ring = (
        run.exchanger.method.bytes_received(),
        traffic.ring_bytes(run.exchanger.layout.n, comm.size),
    )
    if received > ring:
        yield (
            f"warning: of {comm.size} ranks each receives about {traffic.readable(received)} a"
            " step, and would receive "
            f"{traffic.readable(ring)} in a ring Allreduce of the whole gradient; what to do:"
            ' docs/cluster.md, "Many ranks"'
        )


def _fail(error: BaseException, when: str, out: Path | None, comm: Comm) -> int:
    """End every rank with status 1 and one clear line, from the first rank that gets here; details
    go to failure.txt.

    A rank that is alone returns the status, to whatever program it is part of.
    """
    if isinstance(error, local.Ended):
        raise error  # whoever has ended the run has said why
    try:
        known = isinstance(error, KNOWN)
        advice = ADVICE.get(type(error), "")
        words = (
            "interrupted"
            if isinstance(error, KeyboardInterrupt)
            else one_line(described(error)) + advice
        )
        line = f"rank {comm.rank}, {when}: " + (
            words if known else f"{type(error).__name__}: {error}"
        )
        report = out / "failure.txt" if out else None
        _claim_first_word(
            report, line if known else f"{line}\n\n{traceback.format_exc()}", comm.rank
        )
        more = (
            ""
            if known
            else (
                f"; see {report}"
                if report
                else "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            )
        )
        print(f"dls.train: {line}{more}", file=sys.stderr)
    finally:
        if not comm.alone:
            comm.abort(1)
    return 1


def _claim_first_word(report: Path | None, text: str, rank: int) -> None:
    """Return at once on the first rank that fails, which writes the report; later ones wait for its
    abort to end them.
    """
    if report is None:
        time.sleep(LATER * rank)
        return
    try:
        with report.open("x", encoding="utf-8") as file:
            file.write(text + "\n")
    except FileExistsError:
        time.sleep(FIRST_WORD)
    except OSError:
        time.sleep(LATER * rank)


if __name__ == "__main__":
    sys.exit(main(request=REQUEST))
