"""Whether chance alone draws such a batch: the losses of single samples at the weights of an event.

First some hundred samples are asked. Where they leave chance little room, all others of the data set are, as far as
time allows: one sample in some thousands makes the highest batches of a heavy-tailed data set, and a few hundred
samples hold none like it. The event's own samples are never among them: a sample that is out of line must not
speak for itself.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from whyspike.errors import NotReplayable, WhySpikeError
from whyspike.stats import batch_mean_null

if TYPE_CHECKING:
    from whyspike.replay import Subject, Window
    from whyspike.types import Event, Run

POOL = 512  # training samples, of which a large batch needs four times its size
SLOW_POOL = 64  # where a forward pass is slow
RARE = 0.05  # over all steps of a run: a batch is unusual below 1 / (20 T) (causes.md 2.2)
WIDER_S = 2.0  # seconds for asking further samples


def line(run: Run) -> float:
    """The p below which a batch is unusual in a run of so many steps."""
    return RARE / max(1, len(run))


def of_event(
    subject: Subject,
    run: Run,
    event: Event,
    window: Window,
    batch: Any,
    loss: float,
    *,
    slow: bool,
    copies: int | None = None,
) -> float:
    """The chance of a batch like that of one step at the weights before it; nan where a loss is not finite.

    Args:
        window, batch, loss: of the event's step, as recorded.
        slow: whether a forward pass is slow; fewer samples are asked then.
        copies: of a sample in the batch that says what it costs alone; the nominal batch size when not given.

    Raises:
        NotReplayable: no samples can be drawn.
        ValueError: too few samples.
    """
    from whyspike import batches

    subject.at(window, window.event_step)
    row = int(np.searchsorted(run.step, window.event_step))
    own = () if run.sample_ids is None else run.sample_ids[row]
    size = SLOW_POOL if slow else POOL
    return _chance(subject, run, size, own, batches.size(batch), loss, down=event.kind == "dip", copies=copies)


def nearby(subject: Subject, run: Run, event: Event) -> float | None:
    """The same of an event that no capsule covers: at the weights of the nearest one, and at its level."""
    from whyspike.replay import Window

    row = int(np.searchsorted(run.step, event.step))
    steps = {subject.capsule(path).step: path for path in run.capsules}
    if not steps or run.n_samples is None or not np.isfinite(run.loss[row]):
        return None
    near = min(steps, key=lambda s: abs(s - event.step))
    levels = [np.median(run.loss[max(0, r - 64) : r]) for r in (row, int(np.searchsorted(run.step, near))) if r > 0]
    if len(levels) < 2 or not all(np.isfinite(v) and v > 0 for v in levels):
        return None
    own = () if run.sample_ids is None else run.sample_ids[row]
    try:
        subject.at(Window(steps[near], near, None), near)
        observed = float(run.loss[row] * levels[1] / levels[0])
        found = _chance(subject, run, POOL, own, int(run.n_samples[row]), observed, down=event.kind == "dip")
    except (WhySpikeError, ValueError):
        return None
    return found if np.isfinite(found) else None


def _chance(
    subject: Subject,
    run: Run,
    size: int,
    own: Any,
    n: int,
    observed: float,
    *,
    down: bool,
    copies: int | None = None,
) -> float:
    from whyspike import batches
    from whyspike.attribute import per_sample

    sign, copies = -1.0 if down else 1.0, copies or subject.batch_size
    began = time.perf_counter()
    losses = per_sample(subject.model, subject.loss_fn, subject.draw(size), copies)
    if not np.isfinite(losses).all() or not np.isfinite(observed):
        return float("nan")
    found = batch_mean_null(sign * losses, n, sign * observed, n_steps=len(run))
    if found.p_cautious > line(run):
        return found.p_cautious
    each = (time.perf_counter() - began) / size
    more = _others(subject, own, int(WIDER_S / max(each, 1e-9)))
    if more is None or batches.size(more) <= size:
        return found.p_cautious
    losses = per_sample(subject.model, subject.loss_fn, more, copies)
    if not np.isfinite(losses).all():
        return found.p_cautious
    return batch_mean_null(sign * losses, n, sign * observed, n_steps=len(run)).p_cautious


def _others(subject: Subject, own: Any, most: int) -> Any | None:
    """So many samples at most of the data set, none of them the event's own."""
    if subject.dataset is None:
        return None
    rows = np.setdiff1d(np.arange(len(subject.dataset)), np.asarray(list(own), dtype=np.int64))
    if len(rows) > most:
        rows = subject.rng.choice(rows, most, replace=False)
    try:
        return subject.samples(rows.tolist())
    except NotReplayable:
        return None
