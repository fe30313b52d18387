"""Runs as one page in HTML, which needs nothing but itself: no network, no other file.

Whatever comes from a trace is text that somebody else may have written, and is escaped; a policy in
the page forbids the browser to run scripts or to fetch anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape as escaped
from pathlib import Path

import tomli_w

from dls.inspect import figures, pictures, sheets
from dls.inspect.formats import written, written_pair
from dls.inspect.groups import Group
from dls.inspect.pictures import Picture
from dls.inspect.run import Run
from dls.record import files
from dls.tools import plotting
from dls.tools.numbers import MISSING

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What the browser may do: show the page and the pictures in it, nothing else."""
STYLE = """
:root {
  color-scheme: light; font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff;
}
body { max-width: 1500px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 {
  font-size: 1.1rem; margin: 2rem 0 .5rem; padding-top: .5rem; border-top: 1px solid #999;
  overflow-wrap: anywhere;
}
h2 { break-after: avoid; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td {
  padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid
  #ddd;
}
td { white-space: nowrap; }
thead th { overflow-wrap: anywhere; min-width: 7rem; }
.pictures {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(390px, 100%), 1fr)); gap:
  1rem 1.5rem;
}
figure { margin: 0; max-width: 600px; break-inside: avoid; }
figure h3 { font-size: 1rem; margin: .5rem 0 0; }
figcaption { font-size: .87rem; color: #444; margin-bottom: .3rem; }
svg { width: 100%; height: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
dl {
  display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0;
  overflow-wrap: anywhere;
}
dd { margin: 0; }
@media print {
  body { max-width: none; padding: 0; }
  .pictures { grid-template-columns: 1fr 1fr; }
  .scroll { overflow: visible }
}
"""
"""The look of the page."""
SHOWN = ("path", "seed", "started", "ranks", "steps", "hosts", "version", "commit")
"""What is said of every run."""


def write(groups: Sequence[Group], path: Path) -> None:
    """Write the page of these groups. UsageError without matplotlib, OSError."""
    plotting.need_matplotlib("--html")
    files.write_text(path, page(groups))


def page(groups: Sequence[Group]) -> str:
    """The whole page; `plotting.need_matplotlib` comes first."""
    title = _text("DLS: " + ", ".join(group.label for group in groups))
    heading = "Side by side" if len(groups) > 1 else "Over time"
    sections = [*_section(pictures.of_groups(groups), heading)]
    for group in groups:
        sections += _section(pictures.of_one_group(group), f"Layers of {group.label}")
    about = [_about(run) for group in groups for run in group.runs]
    body = [_table(groups), *sections, "<h2>The runs</h2>", *about]
    return "\n".join([*_head(title), *body, "</body>\n</html>\n"])


def _head(title: str) -> list[str]:
    """The beginning of the page."""
    return [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>",
    ]


def _table(groups: Sequence[Group]) -> str:
    """A column for each group; rows in which no group has a figure are left out."""
    of_groups = [figures.of_group(group) for group in groups]
    if not any(each.get("loss") is not None for each in of_groups):
        words = "Nothing recorded yet."
    else:
        words = "Loss, set size and threshold ratio are those of the end, bytes and ms those of a"
        words += " mean step" + _deviation(groups)
    rows = [_seeds(groups)]
    for name in figures.COMPARED:
        cells = [written_pair(name, each.get(name)) for each in of_groups]
        rows.append((name.replace("_", " "), cells))
    lines = [_line(name, cells) for name, cells in rows if set(cells) != {MISSING}]
    heads = "".join(f'<th scope="col">{_text(group.label)}</th>' for group in groups)
    head = f"<thead><tr><td></td>{heads}</tr></thead>"
    table = f"<table>\n{head}\n<tbody>\n{''.join(lines)}\n</tbody>\n</table>"
    return f'<div class="scroll">\n{table}\n</div>\n<p>{words}</p>'


def _deviation(groups: Sequence[Group]) -> str:
    """The end of the sentence below the table."""
    several = any(len(group.runs) > 1 for group in groups)
    return "; ± is the standard deviation over the seeds." if several else "."


def _seeds(groups: Sequence[Group]) -> tuple[str, list[str]]:
    """The row of the seeds."""
    head = "seed" if all(len(group.runs) == 1 for group in groups) else "seeds"
    return head, [
        ", ".join(written("seed", run.about.seed) for run in group.runs) for group in groups
    ]


def _line(name: str, cells: Sequence[str]) -> str:
    """A row of the table."""
    data = "".join(f"<td>{_text(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{_text(name)}</th>{data}</tr>'


def _text(value: str) -> str:
    """Text that may come from a trace, as one line in HTML without control characters."""
    return escaped(files.one_line(value))


def _section(shown: Sequence[Picture], heading: str) -> Iterator[str]:
    """A section of pictures; nothing where there are none."""
    if not shown:
        return
    yield f'<h2>{_text(heading)}</h2>\n<div class="pictures">'
    for picture in shown:
        title, caption = _text(picture.title), _text(picture.caption)
        drawn = sheets.svg(picture).replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
        yield f"<figure>\n<h3>{title}</h3>\n<figcaption>{caption}</figcaption>\n{drawn}\n</figure>"
    yield "</div>"


def _about(run: Run) -> str:
    """What a run was, and its whole configuration."""
    values = {name: written(name, getattr(run.about, name)) for name in SHOWN}
    terms = "".join(
        f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in values.items()
    )
    config = escaped(tomli_w.dumps(dict(run.about.config)))
    return (
        f"<dl>{terms}</dl>\n<details><summary>configuration</summary><pre>{config}</pre></details>"
    )
