"""Find the events of a run: one causal, incremental function, the same live and afterwards.

A value is judged by its residual: log loss minus the median of the preceding 64 steps. The line that a residual
must cross is learnt from the run's own residuals, so that a training with a heavy tail is not called sick for it.
There are two stages. A residual above the high line is an event at once; one above the low line is an event when
the probe loss, measured on the same samples every time, rises within five steps and the two together are out of
the ordinary. Several residuals in a row are one, too, when chance would not put them there (`inarow.py`). A batch
smaller than nominal has its residual shrunk by sqrt(n / batch_size), because a mean over fewer samples is that much
noisier.

Thresholds were chosen by `python benchmarks/detectors.py --calibrate` on seeds of their own and scored on others;
docs/benchmarks/detectors.md has the numbers.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from typing import TYPE_CHECKING

from whyspike.inarow import InARow
from whyspike.levels import AFTER, DIVERGED, WIDTH, SlowRise, jump, may_jump
from whyspike.noise import Channel, Lines
from whyspike.quiet import LEAST as LONG
from whyspike.quiet import Ahead, take_in
from whyspike.types import Event, EventKind

if TYPE_CHECKING:
    from whyspike.types import Run

MEDIAN_STEPS = 64  # the height of an event is its peak over the median of so many steps before it
MERGE_STEPS = 30  # excursions nearer than this are one episode
DECIDE_STEPS = 128  # an event above its line for so long is a level shift or a divergence


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What was calibrated."""

    loss: Lines
    probe: Lines
    joint: float  # mean excesses of the loss and of the probe over their tails, together


LEAST_FOR_DIP = 64  # values before a dip can be told: the first losses of a training fall by jerks
SHORT = 0.25  # of the nominal size: only batches so small are taken together; others are judged one by one

CALIBRATED = Thresholds(
    loss=Lines(
        memory=1024,
        high_tail=10.0,
        high_linear=11.0,
        high_floor=0.4,  # log 1.5: a smaller rise of one mini-batch cannot be seen in a plot
        low_tail=2.5,
        low_floor=0.1,
        down_tail=12.0,
        down_floor=0.7,
    ),
    probe=Lines(
        memory=512,
        high_tail=9.0,
        high_linear=inf,
        high_floor=0.3,
        low_tail=3.0,
        low_floor=0.17,  # what confirms: a rise by 19 %, and out of the probe's own noise
    ),
    joint=12.0,
)
CONFIRM_STEPS = 5
FAR = 1.5
# A dense probe (about 128 samples, every 4 steps) that rises to 1.5 times its median over 64 steps is a spike of the
# network, whatever the plot shows: that is what experiment Q2 calls a state spike. In trainings without one the rise of
# such a probe was below 1.25 (benchmarks/second_question.py).
STATE_LINE, STATE_LOW = log(1.5), log(1.25)
FULL_BATCH_STEPS = 400  # a log of fewer steps, one to an epoch, may be one of epoch means
THINNED = "thinned"  # of a log that holds every k-th step: it may have one point to an epoch
STATE_LEAST = 4  # probe values that make a median


def _shrunk(residual: float, share: float) -> float:
    """The residual that a full batch of the same standing would have: a mean over n is 1 / sqrt(n) as noisy."""
    if share <= 0.0:
        return 0.0
    return log(max(1.0 + (exp(min(residual, 700.0)) - 1.0) * sqrt(share), 1e-300))


@dataclass
class _Running:
    """The event that is going on."""

    kind: EventKind
    step: int
    last_step: int
    peak: float = -inf  # residual, of the loss
    reported: float | None = None
    state: float | None = None
    probe_peak: float = -inf
    calm: int = 0  # steps since the event was last above its line
    base: float = 0.0  # y of the level before it
    check: int = DECIDE_STEPS  # steps after the onset at which to ask whether it has settled
    by_state: bool = False  # seen in the probe alone


class Detector:
    """Find events as the steps come in. An update costs a few microseconds and memory is bounded.

    Args:
        batch_size: nominal samples per step; None takes the largest `n_samples` seen so far.
        dense: the probe is measured often and on many samples, so that its rise alone is an event.
        thresholds: for calibration only.
    """

    def __init__(
        self, *, batch_size: int | None = None, dense: bool = False, thresholds: Thresholds = CALIBRATED
    ) -> None:
        self.dense = dense
        self._joint = thresholds.joint
        self._loss = Channel(MEDIAN_STEPS, thresholds.loss)
        self._probe = Channel(MEDIAN_STEPS, thresholds.probe)
        self._batch_size = batch_size or 0
        self._fixed = batch_size is not None
        self._closed: list[Event] = []
        self._open: _Running | None = None
        # step, residual and y of one above the low line, its mean excesses over the tail, y of the probe before it
        self._candidate: tuple[int, float, float, float, float] | None = None
        self._dip: tuple[int, float, float, int] | None = None  # onset, lowest residual, level before, last step below
        self._short: deque[float] = deque(maxlen=8)  # shrunk residuals of the latest batches below nominal size
        self._row = InARow()
        self._high_before = True  # whether the full batch before this one was above the start of the tail
        self._latest: deque[float] = deque(maxlen=WIDTH)  # y of every step, events included
        self._rise = SlowRise()
        self._probes: deque[tuple[int, float, float]] = deque(maxlen=8)  # step, y, median before
        self._probe_steps: deque[int] = deque()
        self._residual = 0.0
        self._n = 0

    @property
    def events(self) -> tuple[Event, ...]:
        """The events so far, the one that is still going on included."""
        if self._open is None:
            return tuple(self._closed)
        return (*self._closed, self._event(self._open))

    def update(self, step: int, loss: float, *, n_samples: int | None = None, probe: float | None = None) -> bool:
        """Take in one step.

        Args:
            step: optimizer updates so far, increasing.
            loss: as logged; may be nan or inf.
            n_samples: samples of this step.
            probe: loss on the probe set right after this step, where it was measured.

        Returns:
            True when a new event opens, or when the running one reaches a new highest loss.
        """
        news = self._see_loss(step, loss, n_samples)
        if probe is not None:
            news |= self._see_probe(step, probe)
        return news

    def updates(
        self,
        steps: Sequence[int],
        losses: Sequence[float],
        n_samples: Sequence[int | None] | None = None,
        probes: Mapping[int, float] | None = None,
    ) -> list[int]:
        """Take in many steps, as `update` would one by one, but faster.

        Args:
            steps, losses: as in `update`, equally many.
            n_samples: of every step; None when not known.
            probes: loss on the probe set by step, where it was measured.

        Returns:
            The places (from 0) in these sequences at which `update` would have returned True.
        """
        found = []
        at, end = 0, len(losses)
        ahead = Ahead.of(losses, MEDIAN_STEPS) if n_samples is None and not probes and end >= LONG else None
        while at < end:
            if ahead is not None:
                at, news = take_in(self, steps, losses, ahead, at)
            else:
                at, news = self._quiet(steps, losses, n_samples, probes, at, end)
            if news:
                found.append(at)
            elif at < end:
                step = steps[at]
                n = None if n_samples is None else n_samples[at]
                if self.update(step, losses[at], n_samples=n, probe=probes.get(step) if probes else None):
                    found.append(at)
            at += 1
        return found

    def _quiet(
        self,
        steps: Sequence[int],
        losses: Sequence[float],
        n_samples: Sequence[int | None] | None,
        probes: Mapping[int, float] | None,
        begin: int,
        end: int,
    ) -> tuple[int, bool]:
        """Take in steps up to `end` as long as they are ordinary: the way through `_see_loss` that most of them go.

        Written out in one loop, because the calls cost as much as the work. Returns the place of the first step
        that was not taken in; or that of the last that was, and True, when the level of the loss has shifted there.
        """
        channel = self._loss
        if self._open is not None or self._dip is not None or channel.unit or not channel.ordered:
            return begin, False
        recent, ordered, raw, width = channel.recent, channel.ordered, channel.raw, channel.width
        noise, ordered_noise, memory = channel.noise, channel.ordered_noise, channel.lines.memory
        latest, nominal, n, learned = self._latest, self._batch_size, self._n, channel.n
        high, low, down, up, row = channel.high, channel.low, channel.down, channel.up, self._row
        size, full = len(ordered), len(ordered) == width
        at = begin
        for at in range(begin, end):
            loss = losses[at]
            if not 0.0 < loss < inf or (n_samples is not None and n_samples[at] not in (nominal, None)):
                break
            if probes and steps[at] in probes:
                break
            y = log(loss)
            half = size >> 1
            residual = y - (ordered[half] if size & 1 else 0.5 * (ordered[half] + ordered[half - 1]))
            if residual > high or (residual < down and size >= LEAST_FOR_DIP):
                break
            if residual > up or row.going:
                if residual > up and row.onset >= 0:
                    break
                row.update(channel, steps[at], residual, y, residual, full=True)
            latest.append(y)
            n += 1
            if residual > low:
                self._above_low(steps[at], residual, y, residual)
            noise.append(residual)
            insort(ordered_noise, residual)
            learned += 1
            if len(noise) > memory:
                del ordered_noise[bisect_left(ordered_noise, noise.popleft())]
            if not learned & 7 or learned < 24:
                channel.n = learned
                channel.draw_lines()
                high, low, down, up = channel.high, channel.low, channel.down, channel.up
            recent.append(y)
            insort(ordered, y)
            raw.append(loss)
            if full:
                del ordered[bisect_left(ordered, recent.popleft())]
            else:
                size += 1
                full = size == width
            self._residual = residual
            if not n & 7:
                self._n, channel.n = n, learned
                if self._look_at_level(steps[at]):
                    return at, True
        else:
            at = end
        self._n, channel.n = n, learned
        return at, False

    def _see_loss(self, step: int, loss: float, n_samples: int | None) -> bool:
        if loss - loss != 0.0:  # nan or inf
            return self._non_finite(step)
        channel = self._loss
        y = channel.level(loss)
        self._latest.append(y)
        self._n += 1
        if not channel.ordered:
            channel.accept(loss, y)
            return False
        o = channel.ordered
        half = len(o) >> 1
        residual = y - (o[half] if len(o) & 1 else 0.5 * (o[half] + o[half - 1]))
        self._residual = residual
        score, full, high, news = residual, True, False, False
        if n_samples is not None:
            if n_samples > self._batch_size and not self._fixed:
                self._batch_size = n_samples
            elif n_samples < self._batch_size:
                score = _shrunk(residual, n_samples / self._batch_size)
                full = n_samples > 0.9 * self._batch_size
                high = n_samples <= SHORT * self._batch_size and self._short_batch(score)
        if score > channel.high or high:
            news |= self._spike(step, residual, y, score, full)
        elif self._open is not None:
            news |= self._go_on(step, residual, score, y, full)
        elif self._row.update(channel, step, residual, y, score, full=full):
            news |= self._spike_in_a_row(step, score, full)
        elif (score < channel.down and len(channel.ordered) >= LEAST_FOR_DIP) or self._dip is not None:
            news |= self._maybe_dip(step, residual, score, loss, y, full)
        else:
            if score > channel.low:
                self._above_low(step, residual, y, score)
            if full:
                channel.learn(score)
                channel.accept(loss, y)
        if not self._n & 7:
            news |= self._look_at_level(step)
        return news

    def _above_low(self, step: int, residual: float, y: float, score: float) -> None:
        """A candidate for an event, if the probe confirms it."""
        if self._candidate is None or step > self._candidate[0] + CONFIRM_STEPS:
            before = self._probes[-1][1] if self._probes else inf
            self._candidate = (step, residual, y, (score - self._loss.up) / self._loss.excess, before)

    def finish(self) -> tuple[Event, ...]:
        """Close the running event, and return all events."""
        running = self._open
        if running is not None:
            if running.kind == "spike" and running.calm < 8 and running.last_step - running.step >= MERGE_STEPS:
                self._settle(running, final=True)
            self._close()
        return self.events

    # ------------------------------------------------------------------ opening

    def _short_batch(self, score: float) -> bool:
        """Whether the latest short batches together are too high: their mean is sqrt(k) times less noisy."""
        short = self._short
        short.append(score)
        if score < 0.5 * self._loss.high:
            return False
        total = 0.0
        for k, s in enumerate(reversed(short), 1):
            total += s
            if k > 1 and total / sqrt(k) > 0.8 * self._loss.high:
                return True
        return False

    def _spike(self, step: int, residual: float, y: float, score: float, full: bool) -> bool:
        running = self._open
        if running is not None and running.kind == "dip":
            self._close()
            running = None
        self._dip = None
        if running is None:
            # A residual just above the line may be the noise' own tail: it is learnt, cut off at the line, so that a
            # run which does this often raises its line. One far above it is not, or each spike would hide the next.
            if full and score < FAR * self._loss.high:
                self._loss.learn(self._loss.high)
            self._start("spike", step, residual, y)
            self._high_before = True
            return True
        running.last_step, running.calm = step, 0
        news = self._higher(running, residual, y)
        self._settle(running)
        return news

    def _spike_in_a_row(self, step: int, score: float, full: bool) -> bool:
        row = self._row
        onset, peak, level = row.onset, row.peak, row.level
        self._dip = None
        if full:
            self._loss.learn(score)
        self._start("spike", onset, peak, level)
        assert self._open is not None
        self._open.last_step = step
        self._high_before = True
        return True

    def _start(self, kind: EventKind, step: int, residual: float, y: float) -> None:
        if self._closed:
            step = max(step, self._closed[-1].last_step + 1)
        running = self._open = _Running(kind, step, step, base=y - residual)
        self._candidate = None
        self._row.clear()
        self._higher(running, residual, y)
        for at, level, median in self._probes:
            if at >= step:
                self._state(running, level, median)

    def _higher(self, running: _Running, residual: float, y: float) -> bool:
        if residual <= running.peak:
            return False
        running.peak = residual
        running.reported = self._loss.factor(y, y - residual)
        return True

    def _state(self, running: _Running, y: float, median: float) -> None:
        if y - median > running.probe_peak:
            running.probe_peak = y - median
            running.state = self._probe.factor(y, median)

    def _non_finite(self, step: int) -> bool:
        running = self._open
        if running is not None and running.kind == "dip":
            self._close()
            running = None
        if running is None:
            self._open = _Running("non-finite", step, step)
            self._dip = self._candidate = None
            self._row.clear()
            return True
        first = running.kind != "non-finite"
        running.kind, running.reported = "non-finite", None
        running.last_step, running.calm = step, 0
        return first

    def _see_probe(self, step: int, probe: float) -> bool:
        if probe - probe != 0.0:
            return self._non_finite(step)
        channel, steps = self._probe, self._probe_steps
        y = channel.level(probe)
        if not channel.ordered:
            channel.accept(probe, y)
            steps.append(step)
            return False
        median = channel.median()
        residual = y - median
        self._probes.append((step, y, median))
        running, candidate, news = self._open, self._candidate, False
        high, low = residual > channel.high, channel.low
        by_state = self.dense and len(steps) >= STATE_LEAST and residual > STATE_LINE
        if self.dense:
            high, low = by_state, min(low, STATE_LOW)
        confirms = (
            candidate is not None
            and residual > channel.low
            and y - candidate[4] > channel.lines.low_floor
            and candidate[3] + (residual - channel.up) / channel.excess > self._joint
        )
        if (high or confirms) and (running is None or running.kind == "dip"):
            self._close()
            level = self._latest[-1] if self._latest else 0.0
            onset = candidate[:3] if candidate is not None else (step, self._residual, level)
            self._start("spike", *onset)
            running, news = self._open, True
            assert running is not None
            running.by_state = by_state
            channel.learn(min(residual, channel.high))
        if running is not None and running.by_state and step - running.step > DECIDE_STEPS:
            running.kind = "level-shift"
            self._close()
            self._start_afresh(list(self._latest)[-32:])
            return True
        if running is not None and running.kind != "dip":
            if high or (residual > low and running.calm < max(3, step - steps[-1])):
                running.last_step, running.calm = step, 0
            if step <= running.last_step + CONFIRM_STEPS:
                self._state(running, y, median)
        if residual > low and running is not None:
            return news
        if candidate is not None and step >= candidate[0] + CONFIRM_STEPS:
            self._candidate = None
        channel.learn(residual)
        channel.accept(probe, y)
        steps.append(step)
        while len(steps) > 5 and steps[0] < step - MEDIAN_STEPS:
            steps.popleft()
            channel.forget()
        return news

    # ------------------------------------------------------------------ going on, and ending

    def _go_on(self, step: int, residual: float, score: float, y: float, full: bool) -> bool:
        running, channel, news = self._open, self._loss, False
        assert running is not None
        # An excursion lasts while it stays above the low line; a new one joins it by crossing the high line.
        above = running.calm == 0 and (score > channel.low if running.kind != "dip" else score < channel.down)
        if above:
            running.last_step, running.calm = step, 0
            news = self._higher(running, residual, y) if running.kind == "spike" else False
            self._settle(running)
        elif running.kind == "divergence" and y - running.base > running.peak:
            news = self._higher(running, y - running.base, y)
            running.last_step, running.calm = step, 0
        else:
            running.calm += 1
            if running.by_state and running.calm <= 4:  # until the next probe
                self._higher(running, residual, y)
            if full:
                # High values in a row so soon after an event are its aftermath. In the noise they would raise the line
                # from event to event, until the last ones are missed.
                high = score > channel.up
                channel.learn(channel.up if high and self._high_before else max(score, channel.down))
                self._high_before = high
                channel.accept(exp(y) if not channel.unit else y * channel.unit, y)
            if step - running.last_step >= (MERGE_STEPS if running.kind != "divergence" else 2 * MERGE_STEPS):
                self._close()
        return news

    def _settle(self, running: _Running, *, final: bool = False) -> None:
        """Ask of an event above its line for long: does it return, has it settled, does it rise?"""
        age = running.last_step - running.step
        if (age < running.check and not final) or len(self._latest) < 32 or running.kind not in ("spike", "divergence"):
            return
        latest = list(self._latest)
        now, before = sorted(latest[-32:])[16], sorted(latest[-64:-32] or latest[:-16])[-16:][0]
        gap = now - running.base
        running.check = age + MEDIAN_STEPS
        if gap < max(self._loss.low, 0.1) and age < 4 * DECIDE_STEPS:
            return  # single excursions over an old level
        if now > before + 0.1 * gap and gap > log(1.5):
            running.kind = "divergence"
            if not final:
                return
        elif now < before - 0.1 * gap and age < 4 * DECIDE_STEPS and not final:
            return
        else:
            running.kind = "divergence" if gap > log(DIVERGED) or running.kind == "divergence" else "level-shift"
        if not final:
            self._close()
            self._start_afresh(latest[-32:])

    def _start_afresh(self, levels: list[float]) -> None:
        """Take the latest steps for the new level."""
        self._loss.replace(levels)
        self._probe.replace([y for _, y, _ in self._probes])
        self._probe_steps = deque(at for at, _, _ in self._probes)
        self._dip = self._candidate = None
        self._rise.clear()

    def _close(self) -> None:
        if self._open is not None:
            self._closed.append(self._event(self._open))
            self._open = None

    def _event(self, running: _Running) -> Event:
        return Event(
            id=f"e{len(self._closed) + 1}",
            kind=running.kind,
            step=running.step,
            last_step=running.last_step,
            reported=running.reported,
            state=running.state,
        )

    # ------------------------------------------------------------------ dips and levels

    def _maybe_dip(self, step: int, residual: float, score: float, loss: float, y: float, full: bool) -> bool:
        """A dip is one once it has come back; a loss that only falls never does."""
        channel = self._loss
        if self._dip is None:
            channel.learn(max(score, channel.down))
            if full and not channel.deep(loss):
                channel.accept(loss, y)
            else:
                self._dip = (step, residual, y, step)
            return False
        onset, lowest, bottom, last = self._dip
        if score < channel.down or residual < 0.5 * lowest:
            if residual < lowest:
                lowest, bottom = residual, y
            self._dip = (onset, lowest, bottom, step)
        elif residual > 0.25 * lowest:
            self._start("dip", onset, lowest, bottom)
            assert self._open is not None
            self._open.last_step = max(last, self._open.step)
            self._dip = None
            return True
        if full and step > onset + MERGE_STEPS:
            self._start_afresh(list(self._latest)[-MERGE_STEPS:])
        return False

    def _look_at_level(self, step: int) -> bool:
        """Whether the latest steps lie on another level than those before, or rise slowly."""
        if self._n < WIDTH:
            return False
        if not self._n & 31 and self._rises(step, list(self._latest)):
            return True
        if self._open is not None or not may_jump(self._latest):
            return False
        y = list(self._latest)
        found = jump(y)
        if found is None:
            return False
        onset = step - WIDTH + 1 + found.onset
        if self._closed and onset <= self._closed[-1].last_step:
            return False
        self._start("level-shift", onset, found.height, found.level)
        assert self._open is not None
        self._open.last_step = step
        self._close()
        self._start_afresh(y[AFTER:])
        return True

    def _rises(self, step: int, y: list[float]) -> bool:
        higher, running = self._rise.update(step, y), self._open
        if running is not None:
            if running.kind == "divergence" and higher:
                running.last_step, running.calm = step, 0
            return False
        found = self._rise.found(y)
        if found is None:
            return False
        self._start("divergence", found.onset, found.height, found.level)
        assert self._open is not None
        self._open.last_step, self._open.check = step, step - found.onset + MEDIAN_STEPS
        return True


def detect(run: Run) -> tuple[Event, ...]:
    """Find the events of a run: its loss, samples per step and `probe` signal, through the same `Detector`.

    Where every step sees all the data the loss is a probe itself.
    """
    probe = run.signals.get("probe")
    whole = probe is None and run.steps_per_epoch == 1 and THINNED not in run.facts and len(run) >= FULL_BATCH_STEPS
    detector = Detector(batch_size=run.batch_size, dense=whole or bool(run.facts.get("dense_probe")))
    if whole:
        probes = dict(zip(run.step.tolist(), run.loss.tolist(), strict=True))
    else:
        probes = dict(zip(probe.step.tolist(), probe.value.tolist(), strict=True)) if probe is not None else {}
    counts = run.n_samples.tolist() if run.n_samples is not None else None
    detector.updates(run.step.tolist(), run.loss.tolist(), counts, probes)
    return detector.finish()
