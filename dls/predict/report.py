"""What is answered: one sentence, a table, and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dls.cost.network import Network, rate_words
from dls.predict.domain import outside
from dls.predict.forecast import HIGH, LOW, Answer, best
from dls.predict.recording import Run
from dls.record import files
from dls.tools import tables
from dls.traffic import readable

DENSE = "dense"
"""The method that the others are compared with."""
WORTH = 1.05
"""Times that dense must take longer before sparsifying is said to pay."""


@dataclass(frozen=True)
class About:
    """What was asked: a run, on so many ranks of a network."""

    run: Run
    ranks: int
    network: Network


def with_break_even(answer: Answer, rate: float | None) -> Answer:
    """The answer with its break-even."""
    return replace(answer, break_even=rate)


def sentence(about: About, answers: Sequence[Answer]) -> str:
    """What pays on this network, with an interval."""
    dense = next((each for each in answers if each.choice.method == DENSE), None)
    first = best(answers)
    where = f"On {about.ranks} hosts and {about.network.name}"
    if dense is None:
        return f"{where} {first.choice.words} takes the shortest step, {_interval(first)}."
    sparse = [each for each in answers if each is not dense]
    if not sparse:
        return f"{where} dense takes {_interval(dense)} a step."
    winner = best(sparse)
    times = dense.step / winner.step
    if times < WORTH:
        words = f"{where} sparsifying does not pay: dense takes {_interval(dense)} a step"
        return f"{words}, {winner.choice.words} {_interval(winner)}{_even(winner, times)}."
    words = f"{where} {winner.choice.words} takes the shortest step, {_interval(winner)}"
    return (
        f"{words}; dense takes {_interval(dense)}, {times:.3g} times as long{_even(winner, times)}."
    )


def _even(answer: Answer, times: float) -> str:
    if answer.break_even is not None:
        return f"; both take the same time at {rate_words(answer.break_even)}"
    return "; so it is at any rate" if times > 1 else "; it is no faster at any rate"


def _interval(answer: Answer) -> str:
    low, middle, high = (_ms(each) for each in (answer.low, answer.step, answer.high))
    return f"{middle} ms ({low} to {high})"


def _ms(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def _outside(about: About) -> str:
    return outside(about.ranks, about.network, about.run.layout.n)


def notes(about: About) -> list[str]:
    """What to know of the numbers."""
    lines = [
        f"Intervals: {LOW} to {HIGH} % of steps that are drawn from the"
        f" {len(about.run.steps)} recorded ones."
    ]
    if about.network.assumed:
        lines.append(
            f"The network ({about.network.name}) is assumed, not measured: mpirun … python -m"
            " dls.bench exchange --fit net.toml measures yours."
        )
    if words := _outside(about):
        lines.append(f"Outside what was validated: {words}.")
    return lines


def show(about: About, answers: Sequence[Answer]) -> None:
    """Print the sentence, the table and the notes."""
    print(sentence(about, answers))
    lines = [_line(answer, answers) for answer in answers]
    title = f"A step on {about.ranks} hosts, {about.network.name}"
    tables.show(title, lines)
    for note in notes(about):
        print(note)


def _line(answer: Answer, answers: Sequence[Answer]) -> dict[str, Any]:
    dense = next((each for each in answers if each.choice.method == DENSE), None)
    line: dict[str, Any] = {
        "method": answer.choice.method,
        "density": answer.choice.density,
        "collective": answer.choice.collective,
        "step, ms": _ms(answer.step),
        "low": _ms(answer.low),
        "high": _ms(answer.high),
        "computing, ms": _ms(answer.computing),
        "sent": readable(answer.sent),
        "received": readable(answer.received),
    }
    if dense is not None:
        line["step / dense"] = f"{answer.step / dense.step:.3g}"
        even = answer.break_even
        line["faster up to"] = "" if even is None else rate_words(even)
    return line


def to_json(about: About, answers: Sequence[Answer]) -> str:
    """One JSON object."""
    sparse = [each for each in answers if each.choice.method != DENSE]
    record = {
        "sentence": sentence(about, answers),
        "notes": notes(about),
        "run": about.run.name,
        "hosts": about.ranks,
        "network": {
            "name": about.network.name,
            "assumed": about.network.assumed,
            "bits_per_second": about.network.rate,
            "latency_s": about.network.ranges[0].latency,
        },
        "validated": not _outside(about),
        "best": _record(best(answers)),
        "break_even": best(sparse).break_even if sparse else None,
        "methods": [_record(each) for each in answers],
    }
    return files.json_text(record, indent=2)


def _record(answer: Answer) -> dict[str, Any]:
    return {
        "method": answer.choice.method,
        "density": answer.choice.density,
        "collective": answer.choice.collective,
        "value_dtype": answer.choice.value_dtype,
        "bucket_size": answer.choice.bucket_size,
        "step_ms": 1000 * answer.step,
        "low_ms": 1000 * answer.low,
        "high_ms": 1000 * answer.high,
        "computing_ms": 1000 * answer.computing,
        "sent_bytes": answer.sent,
        "received_bytes": answer.received,
        "break_even": answer.break_even,
    }
