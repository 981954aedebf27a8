"""Sessions of a recommender: who interacted with what, and when. Generated, or read from a file of one's own.

The generated ones are synthetic. Items belong to clusters, are popular after Zipf's law, and have a few usual
successors (Markov); a session stays in one cluster, follows a successor now and then, and sometimes jumps anywhere.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

LAST = 10  # items that the next one is predicted from

Interaction = tuple[str, str, float]  # user (or session), item, time


@cache
def sessions(n_windows: int, n_items: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Synthetic sessions of items from 0, enough of them for so many windows.

    Of every step 35 % go to a usual successor, 50 % to an item of the session's cluster, 15 % anywhere.
    """
    rng = np.random.default_rng((seed, n_items))
    popularity = 1.0 / rng.permutation(np.arange(1, n_items + 1))
    cluster = rng.permutation(np.arange(n_items) % max(1, n_items // 25))
    members = [np.flatnonzero(cluster == c) for c in range(int(cluster.max()) + 1)]
    within = [np.cumsum(popularity[m]) / popularity[m].sum() for m in members]
    anywhere = np.cumsum(popularity) / popularity.sum()
    weights = np.array([popularity[m].sum() for m in members])
    clusters = np.cumsum(weights) / weights.sum()
    successors = np.stack([rng.choice(members[cluster[i]], 3) for i in range(n_items)])
    usual = np.cumsum([0.7, 0.2, 0.1])
    made: list[tuple[int, ...]] = []
    left = n_windows
    while left > 0:
        length = int(rng.integers(4, 16))
        own = int(clusters.searchsorted(rng.random()))
        session = [int(members[own][within[own].searchsorted(rng.random())])]
        for kind, draw in rng.random((length - 1, 2)):
            if kind < 0.35:
                session.append(int(successors[session[-1]][usual.searchsorted(draw)]))
            elif kind < 0.85:
                session.append(int(members[own][within[own].searchsorted(draw)]))
            else:
                session.append(int(anywhere.searchsorted(draw)))
        made.append(tuple(session))
        left -= length - 1
    return tuple(made)


@dataclass(frozen=True)
class Windows:
    """Every item of a session but its first, with the items before it."""

    items: np.ndarray  # int64 [N, LAST], from 1 on; 0 where the session had not begun
    target: np.ndarray  # int64 [N], from 0 on
    n_items: int

    def __len__(self) -> int:
        return len(self.target)


def windows(found: Sequence[Sequence[int]], n_items: int, most: int | None = None) -> Windows:
    """The windows of all sessions in their order, `most` of them at most."""
    rows, targets = [], []
    for session in found:
        for k in range(1, len(session)):
            before = session[max(0, k - LAST) : k]
            rows.append([0] * (LAST - len(before)) + [i + 1 for i in before])
            targets.append(session[k])
    items = np.array(rows[:most], dtype=np.int64).reshape(-1, LAST)
    return Windows(items, np.array(targets[:most], dtype=np.int64), n_items)


# --------------------------------------------------------------------------- a file of one's own


def read_interactions(path: str | Path) -> list[Interaction]:
    """Read a file with one interaction a line: user, item, time.

    Separated by commas, tabs or semicolons, in UTF-8. A first line that names the columns `user`, `item` and `time`
    (or `timestamp`; a user may be a `session`) sets their order; further columns are left out. Without such a line
    the first three columns are user, item, time. A time is a number: seconds, or any count that grows.

    Raises:
        ValueError: a line has fewer columns or a time that is no number; the message names the line.
    """
    with open(path, encoding="utf-8", newline="") as file:
        lines = file.read().splitlines()
    head = lines[0] if lines else ""
    delimiter = max("\t;,", key=head.count)
    rows = list(csv.reader(lines, delimiter=delimiter))
    names = [c.strip().lower() for c in rows[0]] if rows else []
    known = {
        "user": ("user", "user_id", "session", "session_id"),
        "item": ("item", "item_id"),
        "time": ("time", "timestamp"),
    }
    columns = [next((names.index(n) for n in known[k] if n in names), -1) for k in ("user", "item", "time")]
    headed = min(columns, default=-1) >= 0
    where = columns if headed else [0, 1, 2]
    found: list[Interaction] = []
    for number, row in enumerate(rows, 1):
        if (number == 1 and headed) or not any(cell.strip() for cell in row):
            continue
        try:
            found.append((row[where[0]].strip(), row[where[1]].strip(), float(row[where[2]])))
        except (IndexError, ValueError):
            raise ValueError(
                f"line {number} of {path} is {delimiter.join(row)!r}; user, item and time are needed, the time a number"
            ) from None
    return found


def write_interactions(path: str | Path, found: Iterable[Sequence[int]]) -> Path:
    """Write sessions as such a file, one second between two items."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["user", "item", "time"])
        clock = 0
        for user, session in enumerate(found):
            for item in session:
                out.writerow([user, item, clock])
                clock += 1
    return Path(path)


def sessions_of(found: Iterable[Interaction]) -> tuple[list[list[int]], list[str]]:
    """Interactions as sessions: those of a user in the order of time, users in the order of their first interaction.

    Returns:
        The sessions, items numbered from 0 in the order in which they first appear, and the items' names.
    """
    ordered = sorted(found, key=lambda i: i[2])
    number: dict[str, int] = {}
    made: dict[str, list[int]] = {}
    for user, item, _ in ordered:
        made.setdefault(user, []).append(number.setdefault(item, len(number)))
    return list(made.values()), list(number)
