"""The numbers behind the pictures of the HTML report, small enough to embed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from whyspike import form
from whyspike.reports import _words as words
from whyspike.types import Diagnosis, Event, Run, Trial

BUCKETS = 20_000  # of which the smallest and largest loss are kept; ten times the pixels of a wide screen
AROUND = 256  # rows kept whole on either side of an event
WHOLE = 60_000  # rows kept whole in all, so that a million steps stay below 2 MB
EVENTS = 2_000  # marked in the picture, the highest first
PAIRS = 12  # single pairs drawn behind the median of an arm


def loss(diagnosis: Diagnosis) -> dict[str, Any] | None:
    """The logged loss: steps as differences, values (null where not finite), and its events."""
    run = diagnosis.record
    if run is None or len(run) == 0:
        return None
    events = sorted(_single(diagnosis.events), key=words.height, reverse=True)[:EVENTS]
    rows = thin(run.loss, [_rows(run, e) for e in events])
    return {
        "first": int(run.step[rows[0]]),
        "gaps": np.diff(run.step[rows], prepend=run.step[rows[0]]).tolist(),
        "value": _numbers(run.loss[rows]),
        "steps": len(run),
        "bucket": -(-len(run) // BUCKETS) if len(rows) < len(run) else 1,
        "events": [_event(run, e) for e in sorted(events, key=lambda e: e.step)],
        "log": spans_decades(run.loss),
        "probe": _probe(run),
    }


def thin(values: np.ndarray, whole: Iterable[tuple[int, int]], buckets: int = BUCKETS) -> np.ndarray:
    """Rows that draw the same picture: the smallest and largest of each bucket, and every row around the events.

    Args:
        values: float64 [T]; a row that is not finite is kept only where its whole bucket is so.
        whole: ranges of rows (first, last) to keep entirely, the most important first, at most `WHOLE` rows in all.

    Returns:
        int64 [K], increasing.
    """
    n = len(values)
    if n <= 2 * buckets:
        return np.arange(n)
    size = -(-n // buckets)
    padded = np.full(size * (-(-n // size)), np.nan)
    padded[:n] = np.where(np.isfinite(values), values, np.nan)
    table = padded.reshape(-1, size)
    low = np.where(np.isnan(table), np.inf, table).argmin(axis=1)
    high = np.where(np.isnan(table), -np.inf, table).argmax(axis=1)
    start = np.arange(len(table)) * size
    kept = np.zeros(n, dtype=bool)
    kept[start + low] = kept[start + high] = True
    kept[0] = kept[-1] = True
    budget = WHOLE
    for first, last in whole:
        first, last = max(first - AROUND, 0), min(last + AROUND, n - 1)
        last = min(last, first + budget - 1)
        kept[first : last + 1] = True
        budget -= last - first + 1
        if budget <= 0:
            break
    return np.flatnonzero(kept)


def fold(diagnosis: Diagnosis) -> dict[str, Any] | None:
    """The loss against the position in the epoch, relative to the median of its epoch: median and 10-90 % band.

    The first epoch, where the loss falls most, is left out when at least three others remain.
    """
    run = diagnosis.record
    length = diagnosis.run.steps_per_epoch
    if run is None or not length or length < 3 or len(run) < 2 * length:
        return None
    index = run.index if run.index is not None else run.step % length
    epoch = run.epoch if run.epoch is not None else run.step // length
    inside = (index >= 0) & (index < length)
    names = np.unique(epoch[inside])
    if len(names) >= 4:
        names = names[1:]
    if len(names) < 2:
        return None
    table = np.full((len(names), length), np.nan)
    chosen = inside & np.isin(epoch, names)
    table[np.searchsorted(names, epoch[chosen]), index[chosen]] = run.loss[chosen]
    table[~np.isfinite(table)] = np.nan
    table = table[np.isfinite(table).mean(axis=1) > 0.5]  # epochs that were (nearly) whole
    if len(table) < 2:
        return None
    table = table / np.nanmedian(table, axis=1, keepdims=True)
    seen = np.isfinite(table).any(axis=0)
    low, middle, high = np.full((3, length), np.nan)
    low[seen], middle[seen], high[seen] = np.nanquantile(table[:, seen], (0.1, 0.5, 0.9), axis=0)
    events = words.events_of(diagnosis, words.sort(diagnosis).answer)
    places: dict[int, int] = {}
    for event in events:
        row = int(np.searchsorted(run.step, event.step))
        if row < len(run) and inside[row]:
            places[int(index[row])] = places.get(int(index[row]), 0) + 1
    rows = thin(middle, [(p, p) for p in sorted(places, key=lambda p: -places[p])])
    return {
        "length": int(length),
        "epochs": len(table),
        "position": (rows + 1).tolist(),
        "low": _numbers(low[rows]),
        "median": _numbers(middle[rows]),
        "high": _numbers(high[rows]),
        "places": [[p + 1, n] for p, n in sorted(places.items(), key=lambda item: -item[1])[:8]],
        "events": len(events),
        "log": spans_decades(middle),
    }


def arms(diagnosis: Diagnosis) -> dict[str, Any] | None:
    """The trials of the answer, aligned on their event: per arm the median over pairs, and single pairs."""
    verdict = words.sort(diagnosis).answer
    trials = [t for t in diagnosis.trials if verdict is not None and t.cause == verdict.cause]
    trials = [t for t in trials if t.backend == "snapshot"] or trials
    if not trials:
        return None
    first = min(t.first_step - t.event_step for t in trials)
    last = max(t.first_step - t.event_step + max(len(t.reported), len(t.state)) - 1 for t in trials)
    made = []
    for arm, name in dict.fromkeys((t.arm, t.words) for t in trials):
        chosen = [t for t in trials if (t.arm, t.words) == (arm, name)]
        reported = [_aligned(t, t.reported, t.reported_reference, first, last) for t in chosen]
        state = [_aligned(t, _bridged(t.state), t.state_reference, first, last) for t in chosen]
        made.append(
            {
                "arm": arm,
                "words": form.plain(name),
                "n": len(chosen),
                "reported": {"median": _median(reported), "pairs": [_numbers(x) for x in reported[:PAIRS]]},
                "state": {"median": _median(state), "pairs": [_numbers(x) for x in state[:PAIRS]]},
            }
        )
    order = ("baseline", "intervention", "placebo")
    return {"first": first, "last": last, "arms": sorted(made, key=lambda a: order.index(a["arm"]))}


def sketch(diagnosis: Diagnosis, width: int = 720, height: int = 160) -> dict[str, Any] | None:
    """The loss as the points of an SVG polyline and the circles of its events, for pages without scripts."""
    run = diagnosis.record
    if run is None or len(run) < 2 or not np.isfinite(run.loss).any():
        return None
    events = sorted(_single(diagnosis.events), key=words.height, reverse=True)[:100]
    rows = thin(run.loss, (), buckets=width // 2)
    rows = rows[np.isfinite(run.loss[rows])]
    use_log = spans_decades(run.loss)
    level = np.log(run.loss[rows]) if use_log else run.loss[rows]
    low, high = float(level.min()), float(level.max())
    pad = 6

    def place(step: float, value: float) -> tuple[float, float]:
        x = pad + (width - 2 * pad) * (step - run.step[0]) / max(float(run.step[-1] - run.step[0]), 1)
        y = pad + (height - 2 * pad) * (1 - (value - low) / max(high - low, 1e-12))
        return round(float(x), 1), round(float(y), 1)

    peaks = [(s, v) for s, v in (_peak(run, e) for e in events) if v is not None and (v > 0 or not use_log)]
    return {
        "width": width,
        "height": height,
        "points": " ".join("{},{}".format(*place(s, v)) for s, v in zip(run.step[rows], level, strict=True)),
        "circles": [place(s, float(np.log(v)) if use_log else v) for s, v in peaks],
        "log": use_log,
    }


# ------------------------------------------------------------------------------- parts


def _bridged(values: Sequence[float]) -> Sequence[float]:
    """The probe between two of its measurements, on a straight line: a whole epoch has only eight of them."""
    y = np.asarray(values, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(y))
    if len(known) < 2 or len(known) == len(y):
        return values
    return np.interp(np.arange(len(y)), known, y[known], left=np.nan, right=np.nan).tolist()


def spans_decades(values: np.ndarray) -> bool:
    """Whether a logarithmic axis serves better: all values positive, the largest over ten times the smallest."""
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() > 10 * finite.min())


def _probe(run: Run) -> dict[str, Any] | None:
    """The loss on the probe set, as it was measured live: the network behind the logged number."""
    probe = run.signals.get("probe")
    if probe is None or not np.isfinite(probe.value).any():
        return None
    rows = thin(probe.value, ())
    rows = rows[np.isfinite(probe.value[rows])]
    return {"step": probe.step[rows].tolist(), "value": _numbers(probe.value[rows])}


def _single(events: Iterable[Event]) -> list[Event]:
    """The events with every return of a periodic one by itself."""
    made = []
    for event in events:
        steps = list(words.returns(event))[:EVENTS]
        made += [replace(event, step=s, last_step=s, period=None) for s in steps] if event.period else [event]
    return made


def _rows(run: Run, event: Event) -> tuple[int, int]:
    first = int(np.searchsorted(run.step, event.step))
    last = int(np.searchsorted(run.step, event.last_step, side="right")) - 1
    return first, max(first, last)


def _peak(run: Run, event: Event) -> tuple[int, float | None]:
    """Where an event is marked: its highest point (the lowest of a dip), the first of what stays; None: not finite."""
    first, last = _rows(run, event)
    part = run.loss[first : last + 1]
    finite = np.flatnonzero(np.isfinite(part))
    if event.kind == "non-finite" or not len(finite):
        return event.step, None
    chosen = {"dip": part[finite].argmin(), "level-shift": 0, "divergence": 0}.get(event.kind, part[finite].argmax())
    best = finite[chosen]
    return int(run.step[first + best]), float(part[best])


def _event(run: Run, event: Event) -> dict[str, Any]:
    step, value = _peak(run, event)
    said = f"{words.KINDS[event.kind][0]} {form.plain(event.id)}: {words.logged(event)}, {words.state(event)}"
    said = said.replace(" x", "\u00d7")
    return {
        "step": event.step,
        "last": event.last_step,
        "peak": [step, None if value is None else float(f"{value:.5g}")],
        "words": said,
    }


def _aligned(trial: Trial, series: Sequence[float], reference: float, first: int, last: int) -> np.ndarray:
    """A series as factors over its reference, placed on the steps `first` to `last` around the event."""
    made = np.full(last - first + 1, np.nan)
    start = trial.first_step - trial.event_step - first
    made[start : start + len(series)] = [np.nan if x is None else x for x in series]
    usable = reference is not None and np.isfinite(reference) and reference != 0
    return made / reference if usable else np.full_like(made, np.nan)


def _median(series: list[np.ndarray]) -> list[float | None]:
    table = np.array(series)
    table[~np.isfinite(table)] = np.nan
    seen = np.isfinite(table).any(axis=0)
    made = np.full(table.shape[1], np.nan)
    made[seen] = np.nanmedian(table[:, seen], axis=0)
    return _numbers(made)


def _numbers(values: np.ndarray) -> list[float | None]:
    """Five significant digits: a thousandth of a pixel; null where not finite."""
    return [float(f"{x:.5g}") if np.isfinite(x) else None for x in values]
