"""A picture of an answer: each method's step with its interval, and what of it is computing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dls.predict.forecast import Answer
from dls.predict.report import About, sentence
from dls.tools import plotting
from dls.tools.drawing import looks

WIDTH = 7.0
"""The picture's width, in inches."""
ROW = 0.32
"""The height of a method's row, in inches."""
WRAP = 95
"""Letters in a line of the title."""


def draw(about: About, answers: Sequence[Answer], path: Path) -> None:
    """Write the picture. OSError."""
    import textwrap

    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 1.6 + ROW * len(answers)), layout="constrained")
    axes: Any = figure.add_subplot()
    for place, answer in enumerate(answers):
        _bar(axes, place, answer)
    axes.set_yticks(range(len(answers)), [answer.choice.words for answer in answers])
    axes.invert_yaxis()
    axes.set_xlabel("a step, ms; dark: computing")
    words = textwrap.fill(sentence(about, answers), WRAP)
    figure.suptitle(words, x=0.02, ha="left", fontsize=8)
    axes.set_xlim(left=0)
    plotting.tidy(axes)
    figure.savefig(path, dpi=150)


def _bar(axes: Any, place: int, answer: Answer) -> None:
    colour = looks([answer.choice.method])[0].colour
    step, computing = 1000 * answer.step, 1000 * min(answer.computing, answer.step)
    axes.barh(place, step, color=colour, alpha=0.45)
    axes.barh(place, computing, color=colour)
    middle = [[step - 1000 * answer.low], [1000 * answer.high - step]]
    ends = [[max(0.0, each[0])] for each in middle]
    axes.errorbar(step, place, xerr=ends, color="grey", linewidth=1.2, capsize=2)
