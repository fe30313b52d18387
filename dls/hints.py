"""What somebody may have meant who typed a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

LIKE = 0.7
"""How alike two names are, from 0 to 1, before one is taken for a slip of the other."""


def near(typed: str, known: Iterable[str], aliases: Mapping[str, str] | None = None, dashes: str = "") -> str:
    """"; did you mean …?" where one of the known names is near; "" elsewhere. dashes: what stands before each name.

    aliases: what is typed for a known name, which is then meant, or for something else, of which these are the words.
    """
    if (meant := (aliases or {}).get(typed)) and meant not in known:
        return f"; {meant}"
    near = meant or next(iter(difflib.get_close_matches(typed.lower(), known, n=1, cutoff=LIKE)), None)
    return f"; did you mean {dashes}{near}?" if near else ""
