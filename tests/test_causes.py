"""What each cause says of an observation: of what points to it, of what points elsewhere, and of its rivals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests_of_causes import last_batch_run, units_of, with_spikes

from whyspike.cause import find


def said(cause: str, seen) -> str | None:
    suspicion = find(cause).signature(seen)
    return None if suspicion is None else suspicion.outcome


# --------------------------------------------------------------------------- exponents


@pytest.mark.parametrize(
    ("alpha", "factor", "cause"),
    [(-1.0, 16.0, "double-averaged-loss"), (1.0, 1 / 16, "sum-reduction"), (0.0, 3.0, "small-last-batch")],
)
def test_the_exponent_decides_between_the_three_causes_of_a_spike_on_the_last_batch(alpha, factor, cause):
    seen = last_batch_run(factor=factor, alpha=alpha, state=1.5)
    for rival in ("double-averaged-loss", "sum-reduction", "small-last-batch"):
        suspicion = find(rival).signature(seen)
        if rival == cause:
            assert suspicion is not None
            assert suspicion.outcome == "likely"
            assert suspicion.identity == (alpha != 0)
        else:
            assert suspicion is None or suspicion.outcome == "refuted"


@pytest.mark.parametrize(
    ("factor", "cause"), [(16.0, "double-averaged-loss"), (1 / 16, "sum-reduction"), (1.0, "small-last-batch")]
)
def test_without_the_network_the_height_of_the_last_batch_tells_them_apart(factor, cause):
    seen = last_batch_run(factor=factor)
    likely = [c for c in ("double-averaged-loss", "sum-reduction", "small-last-batch") if said(c, seen) == "likely"]
    assert likely == [cause]


def test_a_sum_is_named_with_its_sizes():
    seen = last_batch_run(factor=1 / 16, alpha=1.0)
    sentence = find("sum-reduction").sentence(seen, seen.events)
    assert "2 samples instead of 32" in sentence
    assert any("learning rate by 32" in c.cure.words for c in find("sum-reduction").cures(seen))


def test_the_factor_of_the_intervention_undoes_a_sum():
    import torch

    from whyspike.seams import StepContext

    at = StepContext(step=32, epoch=0, index=32, n_samples=2, batch_size=32, is_event=True)
    first = find("sum-reduction").interventions(last_batch_run(factor=1 / 16), lambda n: None)[0]
    assert float(first.loss(at, torch.tensor(0.5))) == pytest.approx(8.0)
    assert float(first.loss(replace(at, is_event=False), torch.tensor(0.5))) == pytest.approx(0.5)


# --------------------------------------------------------------------------- small last batch


def test_a_last_batch_that_does_not_move_the_network_is_not_blamed():
    assert said("small-last-batch", last_batch_run(factor=2.0, alpha=0.0, state=1.02)) == "refuted"
    assert said("small-last-batch", last_batch_run(factor=2.0, alpha=0.0, state=1.4)) == "likely"


@pytest.mark.parametrize("last", [16, 24, 32])
def test_a_last_batch_of_about_the_usual_size_is_not_blamed(last):
    assert said("small-last-batch", last_batch_run(factor=2.0, alpha=0.0, last=last)) is None


def test_spikes_elsewhere_in_the_epoch_are_not_the_last_batch():
    seen = with_spikes(last_batch_run(alpha=0.0), (100, 3.0, 1.5, None))
    for cause in ("small-last-batch", "double-averaged-loss", "sum-reduction"):
        assert said(cause, seen) is None


# --------------------------------------------------------------------------- denominators


def spiky(slope: float, **kw):
    return replace(
        with_spikes(last_batch_run(last=32, alpha=0.0), (70, 9.0, 1.0, 0.2), (140, 8.0, 1.0, 0.3)),
        units=units_of(slope, {70: 2.0, 140: 2.0}),
        **kw,
    )


def test_a_count_that_the_loss_follows_with_slope_minus_one_is_its_divisor():
    assert said("wrong-denominator", spiky(-1.0)) == "likely"
    assert said("wrong-denominator", spiky(-0.4)) == "refuted"
    assert said("wrong-denominator", replace(spiky(-1.0), units=None)) is None


def test_ordinary_counts_at_the_spikes_do_not_point_to_the_divisor():
    seen = replace(spiky(-1.0), units=units_of(-1.0, {70: 20.0, 140: 25.0}))
    assert said("wrong-denominator", seen) is None


def test_the_divisor_takes_the_spike_from_chance():
    assert said("batch-size-noise", spiky(-1.0)) == "refuted"
    assert said("batch-size-noise", replace(spiky(-1.0), units=None)) == "likely"


# --------------------------------------------------------------------------- chance


def noisy(*spikes):
    return with_spikes(last_batch_run(last=32, alpha=0.0), *spikes)


def test_a_batch_that_chance_draws_once_in_a_run_is_chance():
    steps = len(noisy((70, 9.0, 1.0, 0.5)).run)
    assert said("batch-size-noise", noisy((70, 9.0, 1.0, 0.051 / steps))) == "likely"
    assert said("batch-size-noise", noisy((70, 9.0, 1.0, 0.049 / steps))) == "refuted"


def test_what_moves_the_network_is_not_left_to_chance():
    assert said("batch-size-noise", noisy((70, 9.0, 1.3, 0.5))) == "refuted"


def profiled(kind, **found):
    from whyspike.profile import Profile

    return Profile(event="e1", kind=kind, onset=70, height=1.2, same_batch=False, **found)


def test_a_network_that_wobbles_without_the_batch_as_well_is_not_moved_by_it():
    seen = noisy((70, 9.0, 1.2, 0.5))
    profile = profiled(
        "undecided",
        shares=(("the batch of the onset skipped", 0.3), ("the batch 1 step after the onset skipped", -0.2)),
    )
    assert said("batch-size-noise", seen) == "refuted"
    assert said("batch-size-noise", replace(seen, profiles={"e1": profile})) == "likely"
    by_the_batch = replace(profile, shares=(("the batch of the onset skipped", 0.9),))
    assert said("batch-size-noise", replace(seen, profiles={"e1": by_the_batch})) == "refuted"
    too_high = replace(profile, height=1.3)
    assert said("batch-size-noise", replace(seen, profiles={"e1": too_high})) == "refuted"


def test_a_batch_that_is_not_alone_is_named_beside_the_next_best_one():
    from whyspike import beside

    seen = noisy((70, 9.0, 1.2, 0.5))
    shared = profiled("large steps", batch_step=69, batch_share=0.91, next_share=0.84)
    seen = replace(seen, profiles={"e1": shared})
    (said_of_it,) = beside.evidence(seen, ["e1"])
    assert said_of_it.observed == "the batch of step 69 (91 %, another one 84 %)"
    assert beside.evidence(seen, []) == ()
    assert "takes it away, but another one does, too: step 69 (91 %" in beside.sentence(seen, seen.events)
    alone = replace(seen, profiles={"e1": replace(shared, kind="one batch")})
    assert beside.evidence(alone, ["e1"]) == ()
    assert beside.sentence(alone, seen.events).startswith("The batch of step 69 sets it off")


def test_one_spike_at_a_last_batch_is_a_coincidence():
    seen = replace(
        last_batch_run(factor=3.0, alpha=0.0), events=with_spikes(last_batch_run(), (65, 3.0, None, None)).events
    )
    assert said("small-last-batch", seen) is None
    two = with_spikes(last_batch_run(), (65, 3.0, None, None), (98, 3.0, None, None)).events
    assert said("small-last-batch", replace(seen, events=two)) == "likely"


def test_chance_has_no_period():
    seen = last_batch_run(factor=3.0, alpha=0.0)
    assert said("batch-size-noise", replace(seen, batch_null={"e1": 0.5})) is None


def test_chance_draws_easy_batches_too():
    noise = find("batch-size-noise")
    seen = noisy((70, 0.1, 1.0, 1.0))
    dip = replace(seen.events[0], kind="dip")
    steps = len(seen.run)
    for p, outcome in ((0.06 / steps, "likely"), (0.04 / steps, "refuted")):
        assert said("batch-size-noise", replace(seen, events=(dip,), batch_null={"e1": p})) == outcome
    assert "easy samples" in noise.sentence(seen, (dip,))
    assert "hard samples" in noise.sentence(seen, seen.events)


def test_a_spike_that_was_not_tested_is_chance_only_below_one_that_was():
    seen = noisy((70, 9.0, 1.0, 0.5), (140, 8.0, None, None), (210, 10.0, None, None))
    suspicion = find("batch-size-noise").signature(seen)
    assert suspicion is not None
    assert suspicion.events == ("e1", "e2")


def test_too_few_events_for_a_test_stay_likely_instead_of_being_tried():
    noise = find("batch-size-noise")
    for n, tried in ((1, False), (6, False), (7, True)):
        seen = noisy(*((40 + 40 * k, 9.0, 1.0, 0.5) for k in range(n)))
        assert bool(noise.interventions(seen, lambda n: None)) == tried


# --------------------------------------------------------------------------- momentum


def test_momentum_is_suspected_where_there_is_one_and_the_network_moved():
    assert said("momentum-carry-over", last_batch_run(factor=3.0, state=1.5)) == "untested"
    assert said("momentum-carry-over", last_batch_run(factor=3.0, state=1.05)) is None
    assert said("momentum-carry-over", last_batch_run(factor=3.0, state=1.5, momentum=None)) is None
