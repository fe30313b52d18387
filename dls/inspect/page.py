"""Runs as one page in HTML, which needs nothing but itself: no network, no other file.

Whatever comes from a trace is text that somebody else may have written, and is escaped; a policy in
the page forbids the browser to run scripts or to fetch anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape as escaped
from pathlib import Path

import tomli_w

from dls.inspect import pictures
from dls.inspect.groups import Group, group_figures
from dls.inspect.pictures import Picture
from dls.inspect.series import Series
from dls.inspect.summary import COMPARED, written, written_pair
from dls.record import files

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
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
TOLD = ("path", "seed", "started", "ranks", "steps", "hosts", "version", "commit")
"""What is said of every run."""


def write(groups: Sequence[Group], path: Path) -> None:
    """Write the page of these groups. TraceError without matplotlib, OSError."""
    pictures.need("--html")
    files.write_text(path, page(groups))


def page(groups: Sequence[Group]) -> str:
    """The whole page; `pictures.need` comes first."""
    title = _text("DLS: " + ", ".join(group.label for group in groups))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>",
            _table(groups),
            *_shown(
                pictures.together(groups) or [], "Side by side" if len(groups) > 1 else "Over time"
            ),
            *(
                part
                for group in groups
                for part in _shown(pictures.alone(group), f"Layers of {group.label}")
            ),
            "<h2>The runs</h2>",
            *(_about(run) for group in groups for run in group.runs),
            "</body>\n</html>\n",
        ]
    )


def _table(groups: Sequence[Group]) -> str:
    """A column for each group."""
    figures = [group_figures(group) for group in groups]
    seeds = [", ".join(written("seed", run.run["seed"]) for run in group.runs) for group in groups]
    heads = "".join(f'<th scope="col">{_text(group.label)}</th>' for group in groups)
    rows = [("seed" if all(len(group.runs) == 1 for group in groups) else "seeds", seeds)]
    rows += [
        (name.replace("_", " "), [written_pair(name, each.get(name)) for each in figures])
        for name in COMPARED
    ]
    lines = [
        f'<tr><th scope="row">{_text(name)}</th>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows
        if set(cells) != {"-"}
    ]
    several = any(len(group.runs) > 1 for group in groups)
    words = (
        "Loss, set size and threshold ratio are those of the end, bytes and ms those of a mean step"
    )
    words += "; ± is the standard deviation over the seeds." if several else "."
    head = f"<thead><tr><td></td>{heads}</tr></thead>"
    table = f"<table>\n{head}\n<tbody>\n{''.join(lines)}\n</tbody>\n</table>"
    if not any(each.get("loss") is not None for each in figures):
        words = "Nothing recorded yet."
    return f'<div class="scroll">\n{table}\n</div>\n<p>{words}</p>'


def _text(value: str) -> str:
    """What may come from a trace, as one line of text in HTML without control characters."""
    return escaped(files.one_line(value))


def _shown(shown: Sequence[Picture], heading: str) -> Iterator[str]:
    """A section of pictures; nothing where there are none."""
    if not shown:
        return
    yield f'<h2>{_text(heading)}</h2>\n<div class="pictures">'
    for picture in shown:
        title, caption = _text(picture.title), _text(picture.caption)
        drawn = pictures.svg(picture).replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
        yield f"<figure>\n<h3>{title}</h3>\n<figcaption>{caption}</figcaption>\n{drawn}\n</figure>"
    yield "</div>"


def _about(run: Series) -> str:
    """What a run was, and its whole configuration."""
    told = [(name, written(name, run.run[name])) for name in TOLD]
    terms = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in told)
    config = escaped(tomli_w.dumps(run.run["config"]))
    return (
        f"<dl>{terms}</dl>\n<details><summary>configuration</summary><pre>{config}</pre></details>"
    )
