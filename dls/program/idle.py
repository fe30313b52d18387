"""Settings that were given and have no effect: the first lines of a run name them.

They are not refused, because one command line or file may serve several methods, models and data
sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dls.exchange import methods
from dls.exchange.settings import flag, show
from dls.program.config import FIELDS, Config
from dls.tasks import data, models


def remark(given: Mapping[str, Any], config: Config) -> str | None:
    """One line with the given settings that have no effect, and why; None where there are none.

    A setting with its default value is not named: the run is the same without it.
    """
    reasons: dict[str, list[str]] = {}
    for name, value in given.items():
        if value != FIELDS[name].default and (why := reason(name, config)):
            reasons.setdefault(why, []).append(_typed(name, value))
    words = [f"{', '.join(idle)} with {why}" for why, idle in reasons.items()]
    return f"without effect: {'; '.join(words)}" if words else None


def reason(name: str, config: Config) -> str:
    """The setting because of which this one has no effect; "" where it has one."""
    owner: str = FIELDS[name].metadata["of"] or ("method" if name in methods.settings() else "")
    if owner and not _reads(owner, getattr(config, owner), name):
        return _typed(owner, getattr(config, owner))
    for other, is_idle in FIELDS[name].metadata["idle_with"].items():
        if is_idle(getattr(config, other)):
            return _typed(other, getattr(config, other))
    return ""


def _reads(owner: str, chosen: str, name: str) -> bool:
    """Whether the chosen method, model or data set uses a setting of that name."""
    if owner == "method":
        return name in methods.reads(chosen)
    return {"model": models.reads, "dataset": data.reads}[owner](chosen, name)


def _typed(name: str, value: Any) -> str:
    """A setting as the user types it."""
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    return f"{flag(name)} {show(value)}"
