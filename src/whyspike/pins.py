"""Which snapshots stay on disk: at most a dozen, spread over the run, and those of events before all.

An experiment needs several distinct events (at least 8 pairs), and nobody knows before which ones will matter. So of
every kind of capsule each `gap`-th is kept, and when there are too many of a kind, those go first that a gap twice as
wide would not keep: they stay spread however long the run becomes, and the number of writes grows like its logarithm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

MAX_CAPSULES = 12  # twice as many for an experiment, whose p falls with the number of distinct events
FREE_WRITES = 12  # 24 with those of events and epoch ends, 36 with changes between steps; later ones take WRITE_SHARE
FREE_S = 2.0  # seconds that these free writes may take together: a large network writes fewer
WRITE_SHARE = 0.003
HIGHER = 1.25  # an event replaces the highest when it is this much higher


@dataclass
class _Spread:
    """Every gap-th of a kind."""

    most: int
    gap: int = 1
    seen: int = 0
    kept: list[tuple[int, int]] = field(default_factory=list)  # (number among its kind, step of the capsule)

    def wants(self) -> bool:
        return self.seen % (self.gap if len(self.kept) < self.most else 2 * self.gap) == 0

    def thin(self) -> list[int]:
        """Drop the oldest that the next wider gap would not keep; returns the steps of what was dropped."""
        while self.kept and not any(number % (2 * self.gap) for number, _ in self.kept):
            self.gap *= 2
            if self.gap > self.seen:
                break
        dropped = next((k for k in self.kept if k[0] % (2 * self.gap)), None) or (self.kept[-1] if self.kept else None)
        if dropped is None:
            return []
        self.kept.remove(dropped)
        return [dropped[1]]


class Pins:
    """Decides what is pinned and what is deleted. It touches no file itself.

    Args:
        closely: write whatever is wanted, however long it takes, and keep twice as many of the events.
    """

    def __init__(self, *, closely: bool = False) -> None:
        self._closely, self._most = closely, 2 * MAX_CAPSULES if closely else MAX_CAPSULES
        self._spread = {
            "event": _Spread(21 if closely else 9),
            "epoch-end": _Spread(9),
            "steady": _Spread(3),
            "boundary": _Spread(9),
        }
        self._single: dict[
            str, int
        ] = {}  # "start", "first event", "highest event", "latest event" → step of the capsule
        self._highest = -math.inf
        self._elsewhere = 0  # events that were not at the end of an epoch, less those that were
        self._files: dict[int, Path] = {}
        self._write_s, self._writes = 0.0, 0

    # ------------------------------------------------------------------ what to pin

    def for_event(self, height: float, *, at_epoch_end: bool, fresh: bool, elapsed_s: float) -> list[str]:
        """The reasons to keep the snapshot of an event of this height (a factor, or infinite)."""
        reasons = []
        if "first event" not in self._single:
            reasons.append("first event")
        if height > self._highest * HIGHER:
            reasons.append("highest event")
            self._highest = height
        if not fresh:
            return reasons
        affordable = self._affordable(elapsed_s, 2 * FREE_WRITES)
        if not at_epoch_end:  # those have a kind of their own
            if affordable and self._spread["event"].wants():
                reasons.append("event")
            self._spread["event"].seen += 1
        self._spread["steady"].most = 0
        self._elsewhere += 1 if not at_epoch_end else -1
        self._spread["epoch-end"].most = 3 if self._elsewhere > 0 else 9
        if affordable:
            reasons.append("latest event")
        return reasons

    def for_routine(self, kind: str, elapsed_s: float) -> list[str]:
        """The reasons to keep a snapshot; `kind` is "start", "epoch-end", "steady" or "boundary"."""
        if kind == "start":
            return ["start"]
        spread = self._spread[kind]
        free = {"epoch-end": 2, "boundary": 3}.get(kind, 1) * FREE_WRITES
        wanted = spread.most > 0 and spread.wants() and self._affordable(elapsed_s, free)
        spread.seen += 1
        return [kind] if wanted else []

    def _affordable(self, elapsed_s: float, free: int = FREE_WRITES) -> bool:
        free_of_charge = self._writes < free and self._write_s < FREE_S
        return self._closely or free_of_charge or self._write_s < WRITE_SHARE * elapsed_s

    # ------------------------------------------------------------------ what was written

    def written(self, step: int, path: Path | None, reasons: list[str], seconds: float) -> list[Path]:
        """Note a capsule that was written (path=None: one that has got another reason). Returns the files to delete."""
        if path is not None:
            self._files[step] = path
            self._write_s += seconds
            self._writes += 1
        for reason in reasons:
            if reason in self._spread:
                spread = self._spread[reason]
                spread.kept.append((spread.seen - 1, step))
            else:
                self._single[reason] = step
        for spread in self._spread.values():
            if not spread.most:
                spread.kept.clear()
            while len(spread.kept) > spread.most:
                spread.thin()
        while len(self._kept()) > self._most and self._thin_largest():
            pass
        return self._dropped()

    def make_room(self) -> list[Path]:
        """Give up some capsules that are not an event's; returns the files to delete, none when there are none."""
        while True:
            if not self._thin_largest():
                return []
            dropped = self._dropped()
            if dropped:
                return dropped

    def _thin_largest(self) -> bool:
        # Where the events are elsewhere, the routine capsules go first; those of events go before those of what changed
        # between two steps, which are from before the change and cannot be had otherwise.
        kept = {name: s for name, s in self._spread.items() if s.kept}
        changes = [s for name, s in kept.items() if name == "boundary"]
        routine = [s for name, s in kept.items() if name not in ("event", "boundary")]
        events = [s for name, s in kept.items() if name == "event"]
        pool = (routine or events or changes) if changes else routine if self._elsewhere > 0 else [*routine, *events]
        largest = max(pool or events or changes or self._spread.values(), key=lambda s: len(s.kept))
        if not largest.kept:
            return False
        if len(largest.kept) == 1:
            largest.kept.clear()
        else:
            largest.thin()
        return True

    def _kept(self) -> set[int]:
        return {step for s in self._spread.values() for _, step in s.kept} | set(self._single.values())

    def _dropped(self) -> list[Path]:
        kept = self._kept()
        return [self._files.pop(step) for step in list(self._files) if step not in kept]
