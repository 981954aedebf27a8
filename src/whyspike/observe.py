"""Gather what can be observed about a run: from the record alone, and, where it is at hand, on the frozen network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from whyspike import batches
from whyspike.afterlast import after_last, hidden_event, is_of_last
from whyspike.cause import Observation, Units, is_on_last_batch
from whyspike.curve import Curve, look, with_patterns
from whyspike.detect import detect
from whyspike.errors import WhySpikeError
from whyspike.logsigns import of_log
from whyspike.numerics import Numerics
from whyspike.numerics import look as look_at_numbers
from whyspike.periods import PeriodResult, occurrences, period_results, periodic_events
from whyspike.points import as_points, in_steps, periods_in_steps
from whyspike.types import Attribution, Event, Exponent, Run

if TYPE_CHECKING:
    from whyspike.accumulation import Accumulation
    from whyspike.batchnorm import EvalGap, Normalised
    from whyspike.firstloss import FirstLoss
    from whyspike.gaps import GapCurve
    from whyspike.replay import Subject

ATTRIBUTED = 3  # events whose factors are measured: about 660 forward passes each
OCCURRENCES = 5  # of a repeated event, at whose weights its batches are looked at
SETTLED = 64  # steps after which running statistics should have settled: .9**64 of what they began with is .001
GAP_STATES = 3  # at which train and eval mode are compared, on so many batches; statistics are learned from four times
GAP_BATCHES = 8
NULLS = 8  # events that are held against the batch-mean null
COUNTED = 64  # events whose batches are drawn again to count what they hold
CROSS_SAMPLE = 0.05  # of gamma: 0 for any separable loss to rounding, 1 for InfoNCE (benchmarks/exponent.py)
SAME = 1e-4  # an exponent (and gamma) below it is 0 up to rounding (benchmarks/exponent.py)
SLOW_S = 0.02  # a forward pass slower than this gets fewer bootstrap draws and a smaller pool

Progress = Callable[[str, float], None]


def events_of(run: Run) -> tuple[tuple[Event, ...], tuple[PeriodResult, ...], Curve]:
    """The events of a run: episodes, what repeats with one of its periods as one of them, the patterns of its curve.

    Beside them the tests of the periods, and the patterns.
    """
    points = as_points(run)
    periods = period_results(points)
    events = in_steps(run, periodic_events(points, detect(points), periods))
    curve = look(run)
    events = with_patterns(run, curve, events)
    repeats = any(e.period and is_on_last_batch(run, e) for e in events)
    if not repeats and (found := after_last(run)) is not None:
        # What one of these batches did so badly that it is an event by itself is part of it.
        others = [e for e in events if not is_of_last(run, e)]
        ordered = sorted([*others, hidden_event(run, found)], key=lambda e: e.step)
        events = tuple(replace(e, id=f"e{k}") for k, e in enumerate(ordered, 1))
    return events, periods_in_steps(run, periods), curve


def observe(
    run: Run, subject: Subject | None = None, progress: Progress | None = None, *, thrifty: bool = False
) -> Observation:
    """All that can be observed. Nothing of the user's training changes.

    Args:
        thrifty: a pass through the network is dear; no more of them than it takes.
    """
    say = progress or (lambda words, done: None)
    say("looking for events", 0.0)
    events, periods, curve = events_of(run)
    missing = [*_missing(run), *_too_few_cycles(run, periods)]
    if subject is None:
        named = _named(run, events)
        if of_log(run) and run.n_samples is None and any(is_on_last_batch(run, e) for e in events if e.period):
            missing.append("the size of an epoch's last batch: give --batch-size B and --dataset-size N")
        return Observation(run=run, events=named, periods=periods, curve=curve, missing=tuple(missing))
    from whyspike.reread import SameDraws, reread, same_draws

    exponent: Exponent | None = None
    attributions: dict[str, Attribution] = {}
    null: dict[str, float] = {}
    units: Units | None = None
    gaps: GapCurve | None = None
    again: Mapping[int, float] = {}
    draws: SameDraws | None = None
    numerics: Numerics | None = None
    normalised: Mapping[str, Normalised] = {}
    eval_gaps: Sequence[EvalGap] = ()
    first: FirstLoss | None = None
    replayable = bool(run.capsules)
    accumulation: Accumulation | None = None
    with subject.kept():
        subject.learn_convention()
        if subject.convention.nominal > 1:
            say("splitting steps into their micro-batches", 0.02)
            accumulation = _accumulation(subject, events)
        if run.facts.get("num_workers"):
            say("reading samples of recorded batches again", 0.05)
            again = reread(subject)
        if not again or min(again.values()) < 1.0:
            draws = same_draws(subject)
        try:
            numerics = look_at_numbers(subject.model, subject.loss_fn, subject.draw(subject.batch_size))
        except WhySpikeError as error:
            missing.append(f"what the loss does with probabilities: {error}")
        say("measuring the exponent of the loss in the batch size", 0.1)
        try:
            exponent = _exponent(subject)
        except WhySpikeError as error:
            missing.append(f"the batch-size exponent: {error}")
        if replayable:
            with suppress(WhySpikeError):
                first = _first_loss(subject)
                eval_gaps = _eval_gaps(subject)
        if replayable and events:
            try:
                units = _units(subject, events)
            except WhySpikeError as error:
                missing.append(f"the counts that the loss is divided by: {error}")
            contrastive = exponent is not None and abs(exponent.gamma) > CROSS_SAMPLE
            if exponent is not None and contrastive:
                missing.append(
                    "the factors of the events: the loss compares the samples of a batch with each other (it grows by "
                    f"{exponent.gamma:.2f} log n with n copies), so a tiled batch is not the same batch"
                )
            normalised = _normalised(subject, run, events)
            # Where copies of a sample cost what it costs alone, there is no need to fill a batch with them.
            alone = exponent is not None and abs(exponent.alpha) + abs(exponent.gamma) < SAME
            attributions, null = _on_the_network(
                subject,
                run,
                events,
                missing,
                say,
                contrastive=contrastive,
                thrifty=thrifty,
                alone=thrifty and alone,
            )
        if replayable and any(e.is_wave and e.period == run.steps_per_epoch for e in events):
            say("holding the loss of training samples against when they were last trained on", 0.9)
            try:
                gaps = _gaps(subject)
            except WhySpikeError as error:
                missing.append(f"the loss against the time since a sample was last trained on: {error}")
    events = tuple(replace(e, attribution=attributions.get(e.id)) for e in events)
    return Observation(
        run=run,
        events=_named(run, events),
        attributions=attributions,
        exponent=exponent,
        numerics=numerics,
        normalised=normalised,
        eval_gaps=eval_gaps,
        first_loss=first,
        units=units,
        batch_null=null,
        reread=again,
        same_draws=draws,
        periods=periods,
        accumulation=accumulation,
        replayable=replayable,
        gaps=gaps,
        curve=curve,
        missing=tuple(missing),
    )


def _accumulation(subject: Subject, events: Sequence[Event]) -> Accumulation:
    """What the loop does with micro-batches, and what the steps of the events would be as one batch."""
    from whyspike.accumulation import STEPS, Accumulation, whole_loss
    from whyspike.frozen import frozen, loss_value

    pieces, windows = [], {}
    steps = [int(s) for e in events for s in occurrences(subject.run, e)]
    for step in [steps[int(k)] for k in np.unique(np.linspace(0, len(steps) - 1, STEPS).astype(int))] if steps else ():
        try:
            windows[step] = subject.window(step)
            micro, whole = subject.split(windows[step])
        except (WhySpikeError, StopIteration):
            continue
        if len(micro) > 1 and whole is not None:
            pieces.append((step, micro, whole))

    at: list[int] = []

    def loss_of(batch: Any, step: int) -> float:
        if at != [step]:
            subject.at(windows[step], step)
            at[:] = [step]
        with frozen(subject.model):
            return loss_value(subject.model, subject.loss_fn, batch)

    try:
        unit, misfit, splits = whole_loss(pieces, loss_of)
    except WhySpikeError:
        return Accumulation(convention=subject.convention)
    counts = {} if unit is None else _counts(subject, unit)
    return Accumulation(convention=subject.convention, unit=unit, misfit=misfit, splits=splits, counts=counts)


def _counts(subject: Subject, unit: str) -> dict[int, tuple[float, ...]]:
    """The units in each micro-batch of every step that a capsule holds."""
    from whyspike.accumulation import units_of

    held = [s for path in subject.run.capsules for s in subject.capsule(path).steps if s.batches]
    return {s.step: tuple(units_of(b, unit) for b in s.batches or ()) for s in held}


def _missing(run: Run) -> Sequence[str]:
    missing = []
    if of_log(run):
        if run.index is None and not any(note.id == "epoch-only" for note in run.notes):
            missing.append("the place of a step in its epoch: give --steps-per-epoch N")
        return missing
    off = run.marked("probe-off")
    if off and "command" in run.facts:
        missing.append(f"the loss on fixed samples while it trained: {off[-1].data['reason']}")
    if "command" in run.facts:  # a script: nothing of whyspike is written in it
        return [*missing, *_missing_of_script(run)]
    if run.facts.get("loss_fn") is False:
        missing.append(
            "replays and the exponent of the loss: the record has no loss_fn; write "
            "watch(model, optimizer, loss_fn=loss_fn)"
        )
    if run.index is None:
        missing.append("the place of a step in its epoch: iterate over rec.batches(loader)")
    elif run.sample_ids is None:
        missing.append("sample ids: they need a map-style DataLoader inside rec.batches(loader)")
    return missing


def _missing_of_script(run: Run) -> Sequence[str]:
    if run.facts.get("beside"):
        return ["replays: the batches and the snapshots belong to the optimizer that was made first"]
    if run.index is None and run.batch_size is not None:
        return ["the place of a step in its epoch and sample ids: the batches come from no torch DataLoader"]
    if run.index is None:
        return [
            "replays, the place of a step in its epoch and sample ids: the batches come from no torch DataLoader; what "
            "running the script again can tell, `whyspike prove` tells"
        ]
    missing = []
    if run.facts.get("loss_fn") is False:
        why = run.facts.get("untaped") or "no step was recorded on its way"
        missing.append(f"replays and the exponent of the loss: how it comes from a batch is not known ({why})")
    if run.sample_ids is None:
        missing.append("sample ids: the dataset has no indices")
    return missing


def _too_few_cycles(run: Run, periods: Sequence[PeriodResult]) -> Sequence[str]:
    first = periods[0] if periods and periods[0].period == run.steps_per_epoch else None
    if first is None or first.wave is None or first.reason is None or first.wave.reason is None:
        return []
    return [f"what repeats with the epoch: {first.wave.reason}"]


def _named(run: Run, events: Sequence[Event]) -> tuple[Event, ...]:
    """The events with the ids of the samples in their first step's batch, where these are few enough to read.

    In full-batch training every batch has them all, so that none is named.
    """
    if run.sample_ids is None or run.steps_per_epoch == 1:
        return tuple(events)
    named = []
    for event in events:
        row = int(np.searchsorted(run.step, event.step))
        ids = run.sample_ids[row] if row < len(run.sample_ids) else ()
        named.append(replace(event, sample_ids=tuple(str(i) for i in ids[:64])))
    return tuple(named)


def _exponent(subject: Subject) -> Exponent:
    """On samples of the training set, at the weights the model has now."""
    from whyspike import exponent

    if subject.dataset is not None and subject.collate is not None:
        rows = np.random.default_rng(0).choice(
            len(subject.dataset), min(subject.batch_size, len(subject.dataset)), replace=False
        )
        return exponent.measure_from_dataset(
            subject.model, subject.loss_fn, subject.dataset, subject.collate, [int(i) for i in rows]
        )
    return exponent.measure(subject.model, subject.loss_fn, subject.draw(subject.batch_size))


def _gaps(subject: Subject) -> GapCurve | None:
    """From the recorded ids, and at states along some of the recorded epochs."""
    from whyspike.gaps import curve, look

    looked = look(subject.epochs)
    return None if looked is None else curve(looked, subject.run)


def _units(subject: Subject, events: Sequence[Event]) -> Units | None:
    """Which count in the batches the loss of full-size steps follows: of recorded batches, and of those of events."""
    from whyspike import units

    run = subject.run
    rows: list[tuple[float, Mapping[str, float], int, int]] = []
    seen: set[int] = set()
    for path in run.capsules:
        for step in subject.capsule(path).steps:
            if step.step in seen or step.batches is None or len(step.batches) != 1:
                continue
            seen.add(step.step)
            rows.append((step.loss, units.candidates(step.batches[0], step.n_samples), step.n_samples, step.step))
    for event in events[:COUNTED]:
        row = int(np.searchsorted(run.step, event.step))
        if event.step in seen or run.sample_ids is None or row >= len(run.sample_ids):
            continue
        batch = subject.samples(run.sample_ids[row])
        if batch is not None:
            n = len(run.sample_ids[row])
            rows.append((float(run.loss[row]), units.candidates(batch, n), n, event.step))
    logged = {
        name: dict(zip(series.step.tolist(), series.value.tolist(), strict=True))
        for name, series in subject.run.signals.items()
        if len(series.value) and bool(np.all(np.isfinite(series.value)) and np.all(np.mod(series.value, 1) == 0))
    }
    return units.fit(rows, logged, subject.batch_size)


def _first_loss(subject: Subject) -> FirstLoss | None:
    """The loss of the first recorded batch at the weights of the beginning."""
    from whyspike.firstloss import first_loss
    from whyspike.replay import Window

    for path in subject.run.capsules:
        held = subject.capsule(path)
        if held.step == 0 and held.steps and held.steps[0].batches:
            subject.at(Window(path, 0, None), 0)
            return first_loss(subject.model, subject.loss_fn, held.steps[0].batches)
    return None


def _eval_gaps(subject: Subject) -> Sequence[EvalGap]:
    """Train against eval mode at some of the recorded states, where the network has BatchNorm."""
    from whyspike.batchnorm import eval_gap, layers
    from whyspike.replay import Window

    paths = [p for p in subject.run.capsules if subject.capsule(p).step >= SETTLED]
    if not layers(subject.model) or not paths:
        return ()
    drawn = [subject.draw(subject.batch_size) for _ in range(GAP_BATCHES)]
    others = [subject.draw(subject.batch_size) for _ in range(4 * GAP_BATCHES)]
    made = []
    for k in np.unique(np.linspace(0, len(paths) - 1, GAP_STATES).astype(int)):
        step = subject.capsule(paths[int(k)]).step
        subject.at(Window(paths[int(k)], step, None), step)
        made.append(eval_gap(subject.model, subject.loss_fn, drawn, others, step))
    return made


def _normalised(subject: Subject, run: Run, events: Sequence[Event]) -> dict[str, Normalised]:
    """The batches of the events by their own statistics and by the running ones, where there is BatchNorm."""
    from whyspike.batchnorm import Normalised, compare, layers

    made: dict[str, Normalised] = {}
    if not layers(subject.model):
        return made
    for event in [e for e in events if not e.is_wave][:NULLS]:
        held = _windows(subject, run, event)
        compared = []
        for k in np.unique(np.linspace(0, len(held) - 1, OCCURRENCES).astype(int)) if held else ():
            window, batch, _ = held[int(k)]
            with suppress(WhySpikeError):
                subject.at(window, window.event_step)
                compared.append(compare(subject.model, subject.loss_fn, batch))
        if compared:
            own, running = (float(np.mean([getattr(c, part) for c in compared])) for part in ("own", "running"))
            made[event.id] = Normalised(n=compared[len(compared) // 2].n, own=own, running=running)
    return made


def _on_the_network(
    subject: Subject,
    run: Run,
    events: Sequence[Event],
    missing: list[str],
    say: Progress,
    *,
    contrastive: bool,
    thrifty: bool,
    alone: bool,
) -> tuple[dict[str, Attribution], dict[str, float]]:
    """The factors of the highest events, and the p of the batch-mean null of more of them."""
    from whyspike import chance
    from whyspike.attribute import attribute

    attributions: dict[str, Attribution] = {}
    null: dict[str, float] = {}
    height: Callable[[Event], float] = lambda e: abs(np.log(e.reported)) if e.reported else 0.0  # noqa: E731
    single = [e for e in events if not e.is_wave]  # a wave has no step of its own
    for rank, event in enumerate(sorted(single, key=height, reverse=True)[:NULLS]):
        found = _window(subject, run, event)
        if found is None:
            several = run.facts.get("accumulate")
            why = f"no capsule covers step {event.step}"
            if isinstance(several, int) and several > 1:
                why = f"a step has {several} micro-batches, each with a loss of its own"
            missing.append(f"the factors of event {event.id}: {why}")
            p = chance.nearby(subject, run, event)
            if p is not None:
                null[event.id] = p
            continue
        window, batch, loss = found
        say(f"splitting event {event.id} into scale, weights and data", 0.3 + 0.6 * rank / NULLS)
        try:
            slow = thrifty or subject.seconds_per_probe() / len(subject.probe_batches) > SLOW_S
            if slow and rank:
                continue
            p = chance.of_event(subject, run, event, window, batch, loss, slow=slow, copies=1 if alone else None)
            if np.isfinite(p):
                null[event.id] = p
            if rank < ATTRIBUTED and not contrastive:
                attributions[event.id] = attribute(
                    subject.model,
                    subject.loss_fn,
                    event_batch=batch,
                    reported=loss,
                    reference_batches=lambda rng, n: subject.draw(n, rng),
                    batch_size=batches.size(batch) if alone else subject.batch_size,
                    n_boot=30 if slow else 200,
                    restore_reference=lambda w=window: subject.at(w, subject.capsule(w.path).step),
                    restore_event=lambda w=window: subject.at(w, w.event_step),
                )
        except WhySpikeError as error:
            missing.append(f"the factors of event {event.id}: {error}")
    return attributions, null


def _window(subject: Subject, run: Run, event: Event) -> tuple[Any, Any, float] | None:
    """The middle one of the event's occurrences that a capsule covers: its window, its batch, its logged loss."""
    held = _windows(subject, run, event)
    return held[len(held) // 2] if held else None


def _windows(subject: Subject, run: Run, event: Event) -> list[tuple[Any, Any, float]]:
    held = []
    for step in occurrences(run, event):
        try:
            window = subject.window(int(step))
        except WhySpikeError:
            continue
        record = next(s for s in subject.capsule(window.path).steps if s.step == int(step))
        if record.batches is not None and len(record.batches) == 1:
            held.append((window, record.batches[0], record.loss))
    return held
