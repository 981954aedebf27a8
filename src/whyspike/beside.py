"""What the replays of an event show whichever cause is the answer: for the evidence of any verdict, and without one.

A spike that one batch sets off is an interaction of that batch with the state that the network is in. How much is the
batch's and how much the state's is told by the batch from an earlier state, and by other batches from this state.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Observation
from whyspike.form import percent
from whyspike.types import Event, Evidence

if TYPE_CHECKING:
    from whyspike.profile import Profile

SHOWN = 4  # steps that are named in a sentence
LISTED = 12  # in the evidence


def evidence(seen: Observation, events: Collection[str]) -> tuple[Evidence, ...]:
    """Of some events: the first value that is not finite, and what their batches and their states have made."""
    located = seen.numerics.located if seen.numerics is not None else {}
    made = [
        Evidence(
            statement="the first value that is not finite",
            observed=found.words,
            expected="none",
        )
        for event, found in located.items()
        if event in events
    ]
    shared = [p for p in _shared(seen) if p.event in events]
    if shared:
        more = f" and {len(shared) - LISTED} more" if len(shared) > LISTED else ""
        steps = ", ".join(f"{p.batch_step} ({_shares(p)})" for p in shared[:LISTED])
        made.append(
            Evidence(
                statement="one batch skipped takes a spike away, and skipping another one takes half of it or more",
                observed=f"the batch of step {steps}{more}",
                expected="none, if the step size alone makes the spikes",
            )
        )
    profiles = [p for p in _named(seen) if p.event in events]
    from_earlier = [p.elsewhere for p in profiles if p.elsewhere is not None]
    from_here = [p.others_here for p in profiles if p.others_here is not None]
    if from_earlier:
        made.append(
            Evidence(
                statement=f"made by the same batch from a state up to 12 steps earlier ({_median(len(from_earlier))})",
                observed=f"{percent(float(np.median(from_earlier)))} of the spike",
                expected="100 % if the batch does it from any state, 0 % if it takes this one",
            )
        )
    if from_here:
        made.append(
            Evidence(
                statement=f"made by other batches of that size from the same state ({_median(len(from_here))})",
                observed=f"{percent(float(np.median(from_here)))} of the spike",
                expected="0 % if it takes this very batch, 100 % if any does it",
            )
        )
    return tuple(made)


def sentence(seen: Observation, events: Sequence[Event]) -> str:
    """What is known of events that no cause explains; empty where that is nothing."""
    located = seen.numerics.located if seen.numerics is not None else {}
    first = next((located[e.id] for e in events if e.id in located), None)
    if first is not None:
        return f"The first value that is not finite: {first.words}."
    open_ = {e.id for e in events}
    named = [p for p in _named(seen) if p.event in open_]
    if not named:
        shared = [p for p in _shared(seen) if p.event in open_]
        if not shared:
            return ""
        steps = ", ".join(f"{p.batch_step} ({_shares(p)})" for p in shared[:SHOWN])
        return (
            f"Skipping one batch takes {_so_many(len(shared), events)} away, but another one does, too: step {steps}."
        )
    steps = ", ".join(str(p.batch_step) for p in named[:SHOWN])
    more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    gone = percent(float(np.median([p.batch_share or 0.0 for p in named])))
    if len(named) == 1:
        return f"The batch of step {steps} sets {_so_many(1, events)} off: with it skipped, {gone} is gone."
    return (
        f"Single batches set {len(named)} of them off, at steps {steps}{more}: with the batch skipped, {gone} is gone."
    )


def _named(seen: Observation) -> list[Profile]:
    """The profiles of events that one batch carries."""
    return [p for p in seen.profiles.values() if p.kind in ("one batch", "one sample") and p.batch_step is not None]


def _shared(seen: Observation) -> list[Profile]:
    """The profiles of events that one batch carries, and another one half as much: no single one is to blame."""
    shared = [
        p for p in seen.profiles.values() if p.batch_step is not None and p.kind not in ("one batch", "one sample")
    ]
    return sorted(shared, key=lambda p: p.batch_step or 0)


def _shares(p: Profile) -> str:
    """What skipping the batch of a profile takes, beside the next best one."""
    return f"{percent(p.batch_share or 0.0)}, another one {percent(p.next_share or 0.0)}"


def _so_many(n: int, events: Sequence[Event]) -> str:
    """So many of the events, in words."""
    return "it" if n == len(events) == 1 else "one of them" if n == 1 else f"{n} of them"


def _median(n: int) -> str:
    return "1 spike" if n == 1 else f"median of {n} spikes"
