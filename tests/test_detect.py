"""The detector: what it finds, what it leaves alone, and that live and afterwards are the same."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whyspike import quiet
from whyspike.detect import MEDIAN_STEPS, MERGE_STEPS, Detector, _Running, detect
from whyspike.inarow import InARow
from whyspike.levels import SlowRise
from whyspike.noise import Channel
from whyspike.types import Event, Run, Series


def run_of(loss, *, n_samples=None, probe=None, stride: int = 1, batch_size: int | None = None) -> Run:
    loss = np.asarray(loss, dtype=np.float64)
    step = np.arange(len(loss))
    signals = {} if probe is None else {"probe": Series(step[::stride], np.asarray(probe, dtype=np.float64)[::stride])}
    n = None if n_samples is None else np.asarray(n_samples)
    return Run(source="test", reader="test", step=step, loss=loss, n_samples=n, signals=signals, batch_size=batch_size)


def ordinary(n: int, seed: int = 0, noise: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.5 + 2 / np.sqrt(1 + np.arange(n) / 30)) * np.exp(noise * rng.standard_normal(n))


# --------------------------------------------------------------------------- what it finds


def test_one_spike_is_one_event_with_its_height_over_the_median_of_64_steps():
    loss = ordinary(400)
    loss[300:303] *= [8.0, 5.0, 3.0]
    (event,) = detect(run_of(loss))
    assert (event.id, event.kind, event.step, event.last_step) == ("e1", "spike", 300, 302)
    assert event.reported == pytest.approx(loss[300] / np.median(loss[300 - MEDIAN_STEPS : 300]), rel=0.01)
    assert event.state is None  # there was no probe


def test_the_state_height_is_that_of_the_probe_and_tells_a_cosmetic_spike_from_a_damaging_one():
    loss = ordinary(400)
    probe = ordinary(400, seed=1, noise=0.005)
    loss[[150, 300]] *= 8.0
    probe[300:306] *= 2.5  # only the second one reaches the network
    cosmetic, damaging = detect(run_of(loss, probe=probe))
    assert cosmetic.state is not None
    assert cosmetic.state < 1.1
    assert damaging.state == pytest.approx(probe[300:306].max() / np.median(probe[236:300]), rel=0.02)


def test_a_state_spike_that_the_log_does_not_show_is_found_by_the_probe():
    loss, probe = ordinary(400, noise=0.3), ordinary(400, seed=1, noise=0.005)
    probe[250:258] *= 1.6
    assert detect(run_of(loss)) == ()
    (event,) = detect(run_of(loss, probe=probe))
    assert event.kind == "spike"
    assert abs(event.step - 250) <= 5
    assert event.state > 1.5


@pytest.mark.parametrize("stride", [1, 5, 10])
def test_a_rise_below_the_high_line_is_confirmed_by_the_probe(stride):
    loss, probe = ordinary(600, noise=0.12), ordinary(600, seed=1, noise=0.004)
    loss[400] = np.median(loss[336:400]) * 1.7
    assert detect(run_of(loss)) == ()
    probe[400:425] *= 1.28
    (event,) = detect(run_of(loss, probe=probe, stride=stride))
    assert event.step == 400
    assert event.state == pytest.approx(1.28, rel=0.05)


def test_excursions_nearer_than_thirty_steps_are_one_episode():
    loss = ordinary(500)
    loss[[200, 220, 245]] *= 8.0
    loss[245 + MERGE_STEPS + 10] *= 8.0
    events = detect(run_of(loss))
    assert [(e.step, e.last_step) for e in events] == [(200, 245), (285, 285)]


def test_a_dip_is_found_when_it_comes_back():
    loss = ordinary(400)
    loss[250:252] /= 16.0
    (event,) = detect(run_of(loss))
    assert (event.kind, event.step, event.last_step) == ("dip", 250, 251)
    assert event.reported == pytest.approx(1 / 16, rel=0.3)


def test_a_loss_that_settles_higher_is_a_level_shift():
    loss = ordinary(800, noise=0.05)
    loss[400:] *= 2.0
    (event,) = detect(run_of(loss))
    assert (event.kind, event.step) == ("level-shift", 400)


def test_an_abrupt_step_down_is_a_level_shift_and_a_gradual_one_is_not():
    loss = 1.2 * np.exp(0.03 * np.random.default_rng(0).standard_normal(800))
    abrupt = loss.copy()
    abrupt[400:] *= 0.75
    (event,) = detect(run_of(abrupt))
    assert (event.kind, event.step) == ("level-shift", 400)
    gradual = loss * np.interp(np.arange(800), [380, 440], [1.0, 0.75])
    assert detect(run_of(gradual)) == ()


def wandering(n: int, seed: int = 0) -> np.ndarray:
    e = 0.05 * np.random.default_rng(seed).standard_normal(n)
    for k in range(1, n):
        e[k] += 0.95 * e[k - 1]
    return np.exp(e)


def test_losses_that_are_high_together_are_an_event_where_none_is_alone():
    loss = ordinary(1_200, noise=0.25)
    assert detect(run_of(loss)) == ()
    for k in range(15):
        single = loss.copy()
        single[800 + k] *= 1.9
        assert detect(run_of(single)) == ()
    together = loss.copy()
    together[800:815] *= 1.9
    (event,) = detect(run_of(together))
    assert event.kind == "spike"
    assert 800 <= event.step <= 804
    # Where each value resembles the one before a row says little; the odd large swing of 18,000 steps may be found.
    assert sum(len(detect(run_of(wandering(6_000, seed)))) for seed in range(3)) <= 1


def test_the_aftermath_of_spikes_does_not_hide_the_next_ones():
    loss = ordinary(2_000, noise=0.1)
    struck = list(range(100, 2_000, 70))
    for at in struck:
        loss[at] *= 8
        loss[at + 2 : at + 27] *= 2
    assert [e.step for e in detect(run_of(loss))] == struck


def test_a_slow_rise_is_a_divergence_and_wide_noise_is_none():
    rng = np.random.default_rng(1)
    steps = np.arange(8_000)
    wide = np.exp(1.6 * rng.standard_normal(len(steps)))
    assert not [e for e in detect(run_of(wide)) if e.kind == "divergence"]
    rising = np.exp(0.3 * rng.standard_normal(len(steps)) + np.maximum(0, steps - 4_000) / 200)
    first = next(e for e in detect(run_of(rising)) if e.kind == "divergence")
    assert 3_900 < first.step < 4_500


def test_a_loss_that_never_returns_and_keeps_rising_is_a_divergence():
    loss = ordinary(700, noise=0.05)
    loss[400:] *= np.exp(np.minimum(np.arange(300) / 20.0, 12.0))
    (event,) = detect(run_of(loss))
    assert event.kind == "divergence"
    assert 400 <= event.step <= 440


def test_a_spike_that_needs_long_to_return_is_still_a_spike():
    loss = ordinary(1200, noise=0.05)
    loss[400:] *= 1 + 6 * np.exp(-np.arange(800) / 60)
    (event,) = detect(run_of(loss))
    assert (event.kind, event.step) == ("spike", 400)


@pytest.mark.parametrize("first", [0, 1, 5, 20, 300])
def test_non_finite_values_are_found_from_the_first_step_on(first):
    loss = ordinary(400)
    loss[first:] = np.nan
    loss[first] = np.inf
    (event,) = detect(run_of(loss))
    assert (event.kind, event.step, event.last_step, event.reported) == ("non-finite", first, 399, None)


def test_a_spike_that_ends_in_nan_is_one_event():
    loss = ordinary(400)
    loss[300:310] *= np.exp(np.arange(1, 11))
    loss[310:] = np.nan
    (event,) = detect(run_of(loss))
    assert event.kind == "non-finite"
    assert 300 <= event.step <= 302


def test_non_finite_values_do_not_poison_what_follows():
    loss = ordinary(600)
    loss[200] = np.nan
    loss[400] *= 8
    assert [(e.kind, e.step) for e in detect(run_of(loss))] == [("non-finite", 200), ("spike", 400)]


@pytest.mark.parametrize("at", [2, 5, 10, 25])
def test_there_is_no_warm_up_that_hides_an_early_spike(at):
    loss = ordinary(200, noise=0.03)
    loss[at] *= 15.0
    assert [e.step for e in detect(run_of(loss))] == [at]


def test_a_short_last_batch_with_eightfold_loss_is_found_by_its_third_occurrence():
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        steps, epoch = 33 * 12, 33
        last = np.arange(steps) % epoch == epoch - 1
        n = np.where(last, 4, 32)
        loss = ordinary(steps, seed, noise=0.0) * np.exp(0.2 * np.sqrt(32 / n) * rng.standard_normal(steps))
        loss[last] *= 8.0
        events = detect(run_of(loss, n_samples=n, batch_size=32))
        assert all((e.step + 1) % epoch == 0 for e in events)
        found.append(events[0].step // epoch + 1 if events else 99)
    assert max(found) <= 3
    assert np.median(found) <= 2


def test_spikes_in_a_row_do_not_hide_each_other():
    loss = ordinary(3000)
    faults = range(300, 3000, 100)
    loss[list(faults)] *= 8.0
    assert [e.step for e in detect(run_of(loss))] == list(faults)


# --------------------------------------------------------------------------- what it leaves alone


@given(st.integers(0, 10_000), st.floats(0.5, 6.0), st.integers(200, 1500))
@settings(max_examples=30, deadline=None)
def test_a_monotone_fall_has_no_event(seed, decades, n):
    rng = np.random.default_rng(seed)
    drops = rng.pareto(1.5, n) + 1e-3
    loss = 10.0 ** (-decades * np.cumsum(drops) / drops.sum())
    events = detect(run_of(loss))
    assert [e for e in events if e.kind != "level-shift"] == []  # one huge drop between two plateaus is a step down


@pytest.mark.parametrize("seed", range(4))
def test_a_fall_over_five_decades_has_no_event(seed):
    t = np.arange(3000)
    noise = np.exp(0.1 * np.random.default_rng(seed).standard_normal(len(t)))
    for fall in (10.0 ** (-5 * t / len(t)), 10.0 * (1 + t) ** -1.4, np.exp(-t / 20.0) + 1e-5):
        assert detect(run_of(fall * noise)) == ()


@pytest.mark.parametrize(
    ("name", "noise"),
    [
        ("t3", lambda r, n: 1 + 0.1 * np.abs(r.standard_t(3, n))),
        ("lognormal, 4 samples", lambda r, n: r.lognormal(0, 1, (n, 4)).mean(1)),
        ("gaussian", lambda r, n: 2 + 0.2 * r.standard_normal(n)),
        ("exponential", lambda r, n: r.exponential(1, (n, 2)).mean(1)),
    ],
)
def test_ordinary_noise_is_left_alone(name, noise):
    rng = np.random.default_rng(7)
    count = sum(len(detect(run_of(noise(rng, 2000)))) for _ in range(10))
    assert count <= 4, name  # 20,000 steps: .2 per 1,000 at most


def test_a_short_last_batch_that_is_only_noisier_is_left_alone():
    count = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        n = np.where(np.arange(2000) % 33 == 32, 2, 32)
        loss = np.array([rng.lognormal(0, 0.8, k).mean() for k in n])
        count += len(detect(run_of(loss, n_samples=n, batch_size=32)))
    assert count <= 2


def test_a_negative_loss_is_read_on_its_raw_scale():
    rng = np.random.default_rng(0)
    loss = np.linspace(-2, -8, 1500) + 0.2 * rng.standard_normal(1500)
    assert detect(run_of(loss)) == ()
    loss[1200] += 6.0
    (event,) = detect(run_of(loss))
    assert (event.kind, event.step) == ("spike", 1200)


def test_constant_and_zero_losses_have_no_event():
    assert detect(run_of(np.ones(500))) == ()
    assert detect(run_of(np.zeros(500))) == ()
    assert detect(run_of(np.array([]))) == ()


# --------------------------------------------------------------------------- properties


@st.composite
def troubled(draw) -> Run:
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    n = draw(st.integers(30, 500))
    loss = ordinary(n, int(rng.integers(1000)), draw(st.sampled_from([0.02, 0.2, 0.6])))
    probe = ordinary(n, int(rng.integers(1000)), 0.02)
    for at in draw(st.lists(st.integers(0, n - 1), max_size=6)):
        kind = draw(st.sampled_from(["spike", "dip", "up", "nan", "state", "grow"]))
        if kind == "spike":
            loss[at : at + 3] *= 10
        elif kind == "dip":
            loss[at : at + 2] /= 20
        elif kind == "up":
            loss[at:] *= 3
        elif kind == "nan":
            loss[at : at + 4] = np.nan
        elif kind == "state":
            probe[at : at + 10] *= 3
        else:
            loss[at:] *= np.exp(np.arange(n - at) / 40)
    if draw(st.booleans()):
        return run_of(loss, probe=probe, stride=draw(st.sampled_from([1, 7])))
    return run_of(loss)


def feed(run: Run, steps: int) -> Detector:
    probes = dict(zip(run.signals["probe"].step, run.signals["probe"].value, strict=True)) if run.signals else {}
    detector = Detector(batch_size=run.batch_size)
    for t in range(steps):
        detector.update(t, float(run.loss[t]), probe=float(probes[t]) if t in probes else None)
    return detector


@given(troubled(), st.floats(0.1, 1.0))
@settings(max_examples=60, deadline=None)
def test_live_is_the_same_as_afterwards_and_the_future_changes_no_closed_event(run, share):
    whole = detect(run)
    assert feed(run, len(run)).finish() == whole
    early = feed(run, int(share * len(run))).events
    assert early[:-1] == whole[: len(early[:-1])]
    if early:  # the running one may grow, but it is there
        assert len(whole) >= len(early)
        assert whole[len(early) - 1].step == early[-1].step


def state_of(thing: object) -> object:
    """Everything a detector holds, as plain values."""
    if isinstance(thing, Detector | Channel | InARow | SlowRise | _Running):
        names = getattr(type(thing), "__slots__", None) or vars(thing)
        return {name: state_of(getattr(thing, name)) for name in names if name != "lines"}
    return [state_of(v) for v in thing] if isinstance(thing, list | tuple | deque) else repr(thing)


@given(troubled(), st.data())
@settings(max_examples=150, deadline=None)
def test_many_steps_at_once_are_the_same_as_one_by_one(run, data):
    loss, rng = run.loss.copy(), np.random.default_rng(data.draw(st.integers(0, 1000)))
    edge = data.draw(st.sampled_from(["none", "early dip", "step down", "odd value"]))
    if edge == "early dip":
        loss[data.draw(st.integers(3, 20))] /= 20
    elif edge == "step down":
        loss[data.draw(st.integers(0, len(loss) - 1)) :] *= 0.5
    elif edge == "odd value":
        loss[data.draw(st.lists(st.integers(0, len(loss) - 1), max_size=4))] = data.draw(
            st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf, 1e-300])
        )
    sizes = data.draw(st.sampled_from(["none", "full", "short", "mixed"]))
    n = {
        "none": None,
        "full": [32] * len(loss),
        "short": [4 if k % 20 == 19 else 32 for k in range(len(loss))],
        "mixed": [None if v < 5 else v for v in rng.integers(0, 40, len(loss)).tolist()],
    }[sizes]
    probe = run.signals.get("probe")
    probes = dict(zip(probe.step.tolist(), probe.value.tolist(), strict=True)) if probe else {}
    batch_size = data.draw(st.sampled_from([None, 32]))
    slow, fast = Detector(batch_size=batch_size), Detector(batch_size=batch_size)
    values, steps = loss.tolist(), (2 * np.arange(len(loss))).tolist()
    expected = [
        k
        for k, (step, value) in enumerate(zip(steps, values, strict=True))
        if slow.update(step, value, n_samples=n[k] if n else None, probe=probes.get(step))
    ]
    found, at = [], 0
    while at < len(values):
        end = at + data.draw(st.integers(1, 100))
        part = None if n is None else n[at:end]
        found += [at + k for k in fast.updates(steps[at:end], values[at:end], part, probes)]
        at = end
    assert found == expected
    assert state_of(fast) == state_of(slow)
    assert fast.finish() == slow.finish()


@st.composite
def long_logs(draw) -> np.ndarray:
    """Losses of a log so long that its noise is known: white or wandering, rounded, with trouble in it."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    n = draw(st.integers(2100, 4000))
    y = draw(st.sampled_from([0.02, 0.1, 0.5])) * rng.standard_normal(n)
    if draw(st.booleans()):
        for k in range(1, n):
            y[k] += 0.9 * y[k - 1]
    if draw(st.booleans()):
        y += rng.standard_exponential(n) ** 2 * 0.05  # a heavy tail
    loss = np.exp(y - np.linspace(0, draw(st.sampled_from([0.0, 2.0])), n))
    for at in draw(st.lists(st.integers(1100, n - 1), max_size=8)):
        match draw(st.sampled_from(["spike", "dip", "shift", "nan", "zero", "negative", "rise", "flat", "row"])):
            case "spike":
                loss[at] *= draw(st.floats(1.1, 30.0))
            case "dip":
                loss[at : at + draw(st.integers(1, 40))] *= draw(st.floats(0.02, 0.9))
            case "shift":
                loss[at:] *= draw(st.sampled_from([0.3, 0.7, 1.5, 4.0]))
            case "nan":
                loss[at : at + 3] = draw(st.sampled_from([np.nan, np.inf]))
            case "zero":
                loss[at] = 0.0
            case "negative":
                loss[at] = -1.0 if draw(st.integers(0, 3)) == 0 else loss[at]
            case "rise":
                loss[at:] *= np.exp(np.arange(n - at) / 60)
            case "flat":
                loss[at : at + 300] = loss[at]
            case _:
                loss[at : at + 30] *= 1.6
    decimals = draw(st.sampled_from([1, 2, 6, 17]))
    return np.round(loss, decimals) if decimals < 17 else loss


@given(long_logs())
@settings(max_examples=80, deadline=None)
def test_a_long_log_at_once_is_the_same_as_one_by_one(loss):
    values, steps = loss.tolist(), list(range(len(loss)))
    slow, fast = Detector(), Detector()
    expected = [k for k, value in enumerate(values) if slow.update(k, value)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whyspike.detect.LONG", 0)
        assert fast.updates(steps, values) == expected
    assert state_of(fast) == state_of(slow)
    assert fast.finish() == slow.finish()


def test_a_long_log_is_looked_at_ahead(monkeypatch):
    """The fast way is the one that a long log goes: it sees nearly all of the steps."""
    taken = []

    def counted(*given):
        taken.append((given[-1], quiet.take_in(*given)[0]))
        return taken[-1][1], False

    monkeypatch.setattr("whyspike.detect.take_in", counted)
    detect(run_of(ordinary(6000)))
    assert sum(end - begin for begin, end in taken if end - begin > 64) > 4000


@given(troubled())
@settings(max_examples=60, deadline=None)
def test_events_are_numbered_in_order_and_do_not_overlap(run):
    events = detect(run)
    assert [e.id for e in events] == [f"e{k}" for k in range(1, len(events) + 1)]
    for a, b in itertools.pairwise(events):
        assert a.step <= a.last_step < b.step <= b.last_step


@given(troubled(), st.floats(1e-6, 1e6))
@settings(max_examples=40, deadline=None)
def test_the_unit_of_a_positive_loss_does_not_matter(run, unit):
    probe = run.signals.get("probe")
    scaled = Run(
        source="test", reader="test", step=run.step, loss=run.loss * unit,
        signals={"probe": Series(probe.step, probe.value * unit)} if probe else {},
    )  # fmt: skip
    assert [plain(e) for e in detect(scaled)] == [plain(e) for e in detect(run)]


def plain(event: Event) -> tuple:
    heights = tuple(None if h is None else float(f"{h:.6g}") for h in (event.reported, event.state))
    return event.kind, event.step, event.last_step, heights


@given(troubled())
@settings(max_examples=40, deadline=None)
def test_update_says_when_an_event_opens(run):
    detector, probes = Detector(), run.signals.get("probe")
    values = dict(zip(probes.step, probes.value, strict=True)) if probes else {}
    for t in range(len(run)):
        before = len(detector.events)
        news = detector.update(t, float(run.loss[t]), probe=float(values[t]) if t in values else None)
        assert news or len(detector.events) == before


def test_a_new_highest_step_of_the_running_event_is_news():
    loss = ordinary(300, noise=0.01)
    loss[200:204] *= [5.0, 9.0, 7.0, 12.0]
    detector = Detector()
    assert [t for t in range(300) if detector.update(t, float(loss[t]))] == [200, 201, 203]


def test_infinite_and_huge_values_do_not_raise():
    for value in (math.inf, -math.inf, math.nan, 1e308, -1e308, 5e-324, 0.0):
        loss = ordinary(300)
        loss[[0, 7, 150]] = value
        detect(run_of(loss, probe=loss))


def test_an_update_costs_a_few_microseconds():
    loss, probe = ordinary(20_000).tolist(), ordinary(20_000, 1, 0.01).tolist()
    best = math.inf
    for _ in range(3):
        detector = Detector()
        start = time.thread_time()
        for t in range(20_000):
            detector.update(t, loss[t], n_samples=32, probe=probe[t] if t % 10 == 0 else None)
        best = min(best, (time.thread_time() - start) / 20_000)
    assert best < 12e-6  # about 3 on an idle core


# --------------------------------------------------------------------------- a dense probe


def _state_spike(height: float, *, dense: bool) -> tuple[Event, ...]:
    """A noisy loss that shows nothing, and a probe every 4 steps that rises once, at step 600."""
    rng = np.random.default_rng(0)
    detector = Detector(batch_size=32, dense=dense)
    for step in range(1000):
        bump = height if 600 <= step < 616 else 1.0
        probe = bump * float(np.exp(0.03 * rng.standard_normal())) if step % 4 == 0 else None
        detector.update(step, float(np.exp(0.5 * rng.standard_normal())), n_samples=32, probe=probe)
    return detector.finish()


def test_a_rise_of_a_dense_probe_alone_is_an_event() -> None:
    (event,) = _state_spike(1.8, dense=True)
    assert 600 <= event.step <= 604
    assert event.last_step <= 620
    assert event.state == pytest.approx(1.8, rel=0.1)


def test_a_rise_below_one_and_a_half_is_none() -> None:
    assert _state_spike(1.35, dense=True) == ()


def test_a_lasting_rise_of_a_dense_probe_is_one_level_shift() -> None:
    rng = np.random.default_rng(1)
    detector = Detector(batch_size=32, dense=True)
    for step in range(2000):
        probe = (2.0 if step >= 600 else 1.0) * float(np.exp(0.03 * rng.standard_normal())) if step % 4 == 0 else None
        detector.update(step, float(np.exp(0.9 * rng.standard_normal())), n_samples=32, probe=probe)
    assert [(e.kind, 600 <= e.step <= 604) for e in detector.finish()] == [("level-shift", True)]


def test_a_spike_of_the_first_steps_does_not_hide_the_later_ones():
    """The lines are wide at first, so that it is no event itself; nor may it pass for the noise of the others."""
    loss = np.exp(0.15 * np.random.default_rng(0).standard_normal(900))
    for step in (12, 199, 329, 640, 800):
        loss[step] *= 9
    found = detect(Run(source="a test", reader="test", step=np.arange(900), loss=loss))
    assert [(e.kind, e.step) for e in found] == [("spike", step) for step in (199, 329, 640, 800)]
