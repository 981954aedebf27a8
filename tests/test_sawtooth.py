"""What the record says of an epochal sawtooth, and of a last batch that only shows in what is measured after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from whyspike.afterlast import after_last, hidden_event, is_of_last
from whyspike.cause import Observation, is_on_last_batch
from whyspike.causes.epochal_sawtooth import EpochalSawtooth
from whyspike.gaps import GapCurve
from whyspike.observe import events_of
from whyspike.pattern import rises_inside
from whyspike.types import Event, Run, Series

PERIOD, EPOCHS, SIZE = 40, 14, 16


def run_of(
    y: np.ndarray,
    *,
    ids: str | None = "shuffled",
    probe: float | None = 0.0,
    last: int = SIZE,
    validation: np.ndarray | None = None,
) -> Run:
    """A run whose log loss is `y`, [EPOCHS * PERIOD].

    Args:
        ids: "shuffled" anew in every epoch, in the same "fixed" order, or None.
        probe: how much of the log loss the probe follows.
        last: samples of an epoch's last batch.
        validation: its log, at the end of every quarter, [EPOCHS * 4].
    """
    rng = np.random.default_rng(1)
    step = np.arange(len(y))
    index = step % PERIOD
    n = (PERIOD - 1) * SIZE + last
    order = rng.permutation(n)
    drawn = [order if ids == "fixed" else rng.permutation(n) for _ in range(EPOCHS)]
    samples = tuple(o[k : k + SIZE] for o in drawn for k in range(0, n, SIZE)) if ids else None
    signals = {}
    if probe is not None:
        signals["probe"] = Series(step[::4], np.exp(probe * y[::4] + 0.002 * rng.standard_normal(len(y[::4]))))
    if validation is not None:
        signals["val_loss"] = Series(step[PERIOD // 4 - 1 :: PERIOD // 4], np.exp(validation))
    return Run(
        source="made by hand",
        reader="test",
        step=step,
        loss=np.exp(y),
        epoch=step // PERIOD,
        index=index,
        n_samples=np.where(index == PERIOD - 1, last, SIZE),
        sample_ids=samples,
        steps_per_epoch=PERIOD,
        batch_size=SIZE,
        signals=signals,
    )


def sawtooth(amplitude: float = 0.3, slope: float = -0.02, noise: float = 0.03) -> np.ndarray:
    step = np.arange(EPOCHS * PERIOD)
    wave = amplitude * ((step % PERIOD) / (PERIOD - 1) - 0.5)
    return wave + slope * step / PERIOD + noise * np.random.default_rng(0).standard_normal(len(step))


def seen_in(run: Run) -> Observation:
    events, periods, curve = events_of(run)
    return Observation(run=run, events=events, periods=periods, curve=curve)


def outcome(run: Run, **more: object) -> str | None:
    found = EpochalSawtooth().signature(replace(seen_in(run), **more))
    return None if found is None else found.outcome


def test_a_reshuffled_run_with_a_flat_probe_is_likely_one() -> None:
    assert outcome(run_of(sawtooth())) == "likely"


def test_noise_is_none_and_neither_is_a_wave_of_another_shape() -> None:
    assert outcome(run_of(sawtooth(amplitude=0.0))) is None
    assert outcome(run_of(-sawtooth())) is None


def test_a_fixed_order_is_refuted_by_the_gaps() -> None:
    assert outcome(run_of(sawtooth(), ids="fixed")) == "refuted"


def test_a_network_that_moves_with_the_loss_is_refuted_by_the_probe() -> None:
    found = EpochalSawtooth().signature(seen_in(run_of(sawtooth(), probe=0.9)))
    assert found is not None
    assert found.outcome == "refuted"
    assert "network itself" in (found.reason or "")


def test_without_ids_it_is_untested_and_says_what_to_give() -> None:
    found = EpochalSawtooth().signature(seen_in(run_of(sawtooth(), ids=None)))
    assert found is not None
    assert found.outcome == "untested"
    assert "rec.batches(loader)" in (found.reason or "")


@pytest.mark.parametrize(("slope", "expected"), [(0.4, "likely"), (0.0, "refuted")])
def test_a_loss_that_does_not_grow_with_the_gap_refutes_it(slope: float, expected: str) -> None:
    curve = GapCurve(
        slope=slope,
        interval=(slope - 0.05, slope + 0.05),
        gap=np.array([0.5, 1.0]),
        loss=np.array([0.0, slope / 2]),
        n=np.array([64, 64]),
        states=24,
        clusters=8,
        observed=np.array([-0.1, 0.0, 0.0, 0.1]),
        predicted=np.array([-0.1, 0.0, 0.0, 0.1]),
    )
    assert outcome(run_of(sawtooth()), gaps=curve) == expected


def test_the_fall_at_a_boundary_that_the_detector_saw_belongs_to_the_wave() -> None:
    seen = seen_in(run_of(sawtooth()))
    wave = next(e for e in seen.events if e.is_wave)
    drop = Event(id="e8", kind="level-shift", step=5 * PERIOD, last_step=5 * PERIOD + 3, reported=0.75)
    elsewhere = replace(drop, id="e9", step=5 * PERIOD + PERIOD // 2)
    far_lower = replace(drop, id="e10", reported=0.3)
    found = EpochalSawtooth().signature(replace(seen, events=(wave, drop, elsewhere, far_lower)))
    assert found is not None
    assert found.events == (wave.id, drop.id)


def test_the_usual_explanation_has_its_number() -> None:
    """The loss falls from epoch to epoch: nothing diverges."""
    found = EpochalSawtooth().signature(seen_in(run_of(sawtooth())))
    assert found is not None
    (row,) = [e for e in found.evidence if "diverged" in e.expected]
    assert float(row.observed.removesuffix(" x")) == pytest.approx(np.exp(-0.02 * (EPOCHS - 2)), rel=0.03)


def test_the_answer_gives_the_gaps_of_the_first_and_the_last_quarter() -> None:
    seen = seen_in(run_of(sawtooth()))
    said = EpochalSawtooth().sentence(seen, seen.events)
    assert "0.6" in said
    assert "1.3" in said
    assert "not because the network is better there" in said


def test_the_validation_is_spoken_of_only_where_it_dips_beyond_chance() -> None:
    rng = np.random.default_rng(3)
    noise = 0.01 * rng.standard_normal(4 * EPOCHS)
    real = run_of(sawtooth(), validation=np.tile([0.03, 0.02, -0.01, -0.04], EPOCHS) + noise)
    flat = run_of(sawtooth(), validation=noise)
    cause = EpochalSawtooth()
    assert "validation" in cause.sentence(seen_in(real), ())
    assert "validation" not in cause.sentence(seen_in(flat), ())


def test_a_sawtooth_rises_inside_its_epochs_and_a_staircase_does_not() -> None:
    assert rises_inside(run_of(sawtooth()))
    stairs = -0.15 * (np.arange(EPOCHS * PERIOD) // PERIOD) + 0.03 * np.random.default_rng(0).standard_normal(
        EPOCHS * PERIOD
    )
    assert not rises_inside(run_of(stairs))
    assert not rises_inside(run_of(sawtooth(amplitude=0.0)))


# --------------------------------------------------------------------------- the last batch


def test_a_validation_that_is_worse_right_after_a_small_last_batch_is_an_event_there() -> None:
    rng = np.random.default_rng(3)
    validation = np.tile([0.0, 0.0, 0.0, 0.25], EPOCHS) + 0.02 * rng.standard_normal(4 * EPOCHS)
    run = run_of(sawtooth(), last=3, validation=validation)
    found = after_last(run)
    assert found is not None
    assert found.name == "val_loss"
    assert found.factor == pytest.approx(np.exp(0.25), rel=0.03)
    assert found.p_value <= 0.001
    event = hidden_event(run, found)
    assert is_on_last_batch(run, event)
    assert not event.is_wave
    assert [e.kind for e in seen_in(run).events if is_on_last_batch(run, e)] == ["periodic"]


@pytest.mark.parametrize(
    ("before", "state", "belongs"),
    [(0, None, True), (4, 1.5, True), (4, None, False), (PERIOD // 2, 1.5, False), (-1, 1.5, False)],
    ids=["there", "seen by the probe from shortly before", "a loss before it", "elsewhere", "after it"],
)
def test_a_spike_at_a_small_last_batch_is_part_of_what_repeats_there(
    before: int, state: float | None, belongs: bool
) -> None:
    at = 6 * PERIOD - 1 - before
    event = Event(id="e1", kind="spike", step=at, last_step=at + 6, reported=1.4, state=state)
    assert is_of_last(run_of(sawtooth(), last=3), event) == belongs
    assert not is_of_last(run_of(sawtooth()), event)


@pytest.mark.parametrize("last", [3, SIZE])
@pytest.mark.parametrize("height", [0.0, 0.25])
def test_no_event_without_a_small_batch_or_without_a_rise(last: int, height: float) -> None:
    if last == 3 and height:
        return
    rng = np.random.default_rng(3)
    validation = np.tile([0.0, 0.0, 0.0, height], EPOCHS) + 0.02 * rng.standard_normal(4 * EPOCHS)
    assert after_last(run_of(sawtooth(), last=last, validation=validation)) is None


def test_noise_alone_makes_no_event_after_a_small_batch() -> None:
    rng = np.random.default_rng(5)
    made = [
        after_last(run_of(sawtooth(), last=3, validation=0.2 * rng.standard_normal(4 * EPOCHS))) for _ in range(100)
    ]
    assert sum(m is not None for m in made) <= 2  # alpha is .005
