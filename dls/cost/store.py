"""Networks as TOML files: `dls.bench exchange --fit` writes them, `dls.predict` reads them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from dls.cost.network import Network, NetworkError, Range
from dls.cost.profiles import PROFILES

FORMAT = "dls-network/1"
"""What the file says that it is."""


def save_network(network: Network, path: Path, **about: Any) -> None:
    """Write a network, with whatever else is to be known of it. OSError."""
    record: dict[str, Any] = {
        "format": FORMAT,
        "name": network.name,
        "assumed": network.assumed,
        "doubling": network.doubling,
        "poll": network.poll,
        "tax": network.tax,
        "ranges": [
            {
                "least": each.least,
                "latency": each.latency,
                "seconds_per_byte": each.seconds_per_byte,
            }
            for each in network.ranges
        ],
        **about,
    }
    path.write_text(tomli_w.dumps(record), encoding="utf-8")


def load_network(path: Path) -> Network:
    """The network in a file. NetworkError: one line that says what is wrong with it."""
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NetworkError(
            f"there is no network file {path}, and no profile of that name; the profiles are"
            f" {', '.join(PROFILES)}"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise NetworkError(f"{path} cannot be read as a network: {error}") from None
    if record.get("format") != FORMAT:
        raise NetworkError(f"{path} is no network: its format is not {FORMAT}")
    try:
        return _network(record)
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise NetworkError(f"{path} lacks what a network needs: {error!r}") from None


def _network(record: dict[str, Any]) -> Network:
    ranges = tuple(
        Range(int(each["least"]), float(each["latency"]), float(each["seconds_per_byte"]))
        for each in record["ranges"]
    )
    return Network(
        ranges,
        str(record.get("name", "network")),
        bool(record.get("assumed", False)),
        int(record.get("doubling", 0)),
        float(record.get("poll", 0.0)),
        float(record.get("tax", 0.0)),
    )
