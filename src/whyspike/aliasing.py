"""Where a log of every k-th step meets the epoch: at which places, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import numpy as np

from whyspike.cause import Observation
from whyspike.folding import places
from whyspike.periods import occurrences
from whyspike.plotted import Plotted
from whyspike.points import spacing
from whyspike.repeats import heights
from whyspike.signals import logged
from whyspike.types import Event, Run

LEAST = 4  # plotted spikes; fewer lie on one step of the epoch by chance
HIGH = 0.5  # of a spike's typical log height: what is above it is a spike, too


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A pattern of the epoch as a log of every k-th step shows it."""

    size: int  # S, steps in an epoch
    every: int  # k
    index: int  # of the step in the epoch, from 0
    met: int  # logged values of that step, all of them spikes
    others: int  # other logged values, none of them a spike
    apparent: int  # lcm(S, k)
    events: tuple[Event, ...]  # that are explained by it
    plotted: Plotted | None = None
    recorded: int = 0  # spikes in the record


def in_the_log(seen: Observation) -> Alias | None:
    """The log's own spikes, where the log holds every k-th step: do they lie on one step of the epoch?"""
    run = seen.run
    every, regular = spacing(run.step)
    size = run.steps_per_epoch
    if every < 2 or not regular or not size or lcm(size, every) == size or len(run) < 64:
        return None
    events = [e for e in seen.events if e.kind in ("spike", "periodic") and not e.is_wave and (e.reported or 0) > 1]
    index = _index(run)
    height = np.log(np.maximum(heights(run, np.arange(len(run))), 1e-300))
    peaks = _peaks(run, events, height)
    if len(peaks) < LEAST:
        return None
    place = int(np.bincount(index[peaks][index[peaks] >= 0]).argmax())
    at = np.flatnonzero((index == place) & np.isfinite(height))
    if len(at) < LEAST:
        return None
    line = HIGH * float(np.median(height[at]))
    others = np.flatnonzero((index != place) & np.isfinite(height))
    # The first epochs fall too fast for a height to mean anything.
    others = others[others >= 16]
    if line <= 0 or (height[at] < line).any() or (height[others] >= line).any():
        return None
    explained = [e for e in events if set(_peaks(run, [e], height)) <= set(at.tolist())]
    return Alias(
        size=size, every=every, index=place, met=len(at), others=len(others), apparent=lcm(size, every),
        events=tuple(explained),
    )  # fmt: skip


def in_the_plot(seen: Observation, found: Plotted) -> Alias | None:
    """A number logged every k-th step beside the record of every step, which shows a pattern of the epoch."""
    run, size = seen.run, seen.run.steps_per_epoch
    if found.form != "loss" or found.every < 2 or not size or lcm(size, found.every) == size:
        return None
    pattern = next((e for e in seen.events if e.period == size and not e.is_wave and (e.reported or 0) > 1), None)
    if pattern is None:
        return None
    series = logged(run)[found.name]
    own = Run(source="", reader="", step=series.step, loss=series.value)
    height = np.log(np.maximum(heights(own, np.arange(len(own))), 1e-300))
    steps = set(occurrences(run, pattern).tolist())
    hit = np.array([int(s) + found.shift in steps for s in series.step])
    judged = np.isfinite(height) & (np.arange(len(own)) >= 16)
    if (hit & judged).sum() < LEAST:
        return None
    line = HIGH * float(np.median(height[hit & judged]))
    if line <= 0 or (height[hit & judged] < line).any() or (height[~hit & judged] >= line).any():
        return None
    row = int(np.searchsorted(run.step, pattern.step))
    return Alias(
        size=size, every=found.every, index=int(_index(run)[row]), met=int((hit & judged).sum()),
        others=int((~hit & judged).sum()), apparent=lcm(size, found.every), events=(), plotted=found,
        recorded=len(steps),
    )  # fmt: skip


def _index(run: Run) -> np.ndarray:
    _, phase = places(run, run.step)
    return np.where(phase >= 0, np.round(phase * (run.steps_per_epoch or 1)), -1).astype(np.int64)


def _peaks(run: Run, events: list[Event], height: np.ndarray) -> list[int]:
    """The highest row of each event, or the rows of a periodic one."""
    rows: list[int] = []
    for e in events:
        if e.kind == "periodic":
            rows += np.flatnonzero(np.isin(run.step, occurrences(run, e))).tolist()
            continue
        first, last = np.searchsorted(run.step, [e.step, e.last_step + 1])
        part = np.where(np.isfinite(height[first:last]), height[first:last], -np.inf)
        if len(part):
            rows.append(int(first + part.argmax()))
    return rows
