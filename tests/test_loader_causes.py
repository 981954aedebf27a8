"""Causes that sample ids and the loader show: what each says of an observation, and what its interventions change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_sampling import batched, run_of

from whyspike.cause import Observation, find
from whyspike.interventions import CopyOthers, DropCopies, LeaveCopiesOut, ReadSamples, ReplaceCopies
from whyspike.reread import SameDraws
from whyspike.seams import EpochContext, StepContext
from whyspike.types import Event, Exponent, Run
from whyspike.workers import workers

SIZE = 8


def outcome(cause: str, seen: Observation) -> str | None:
    suspicion = find(cause).signature(seen)
    return None if suspicion is None else suspicion.outcome


def step_at(step: int, *, event: bool = True, n: int = SIZE) -> StepContext:
    return StepContext(
        step=step, epoch=0, index=step, n_samples=n, batch_size=n, is_event=event, since_event=0 if event else None
    )


def other_samples(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((n, 2), -1.0), torch.full((n,), -1)


# --------------------------------------------------------------------------- padded-duplicates


def padded(epochs: int = 8, *, copies: bool = True) -> Observation:
    """Epochs of 6 batches of 8; the last one has 2 samples four times over, or 8 different ones."""
    rng = np.random.default_rng(0)
    passes = []
    for _ in range(epochs):
        order = rng.permutation(48)
        last = np.tile(order[40:42], 4) if copies else order[40:]
        passes.append([*batched(order[:40]), last.tolist()])
    run = run_of(passes)
    run = replace(run, steps_per_epoch=6, batch_size=SIZE, n_samples=np.full(len(run), SIZE))
    event = Event(id="e1", kind="periodic", step=5, last_step=len(run) - 1, period=6, reported=2.5)
    return Observation(
        run=run, events=(event,), exponent=Exponent(alpha=0.0, gamma=1.0, permutation=0.0, losses=(1, 1, 1))
    )


def test_copies_on_the_steps_of_an_event_are_suspected_and_named():
    seen = padded()
    assert outcome("padded-duplicates", seen) == "likely"
    sentence = find("padded-duplicates").sentence(seen, seen.events)
    assert "only 2 different samples, repeated until it has 8" in sentence
    assert "wrong answers" in sentence


def test_an_event_without_copies_is_not_padded():
    assert outcome("padded-duplicates", padded(copies=False)) is None
    seen = padded()
    elsewhere = replace(seen.events[0], step=3)
    assert outcome("padded-duplicates", replace(seen, events=(elsewhere,))) is None


def test_copies_everywhere_tell_no_step_from_another():
    rng = np.random.default_rng(0)
    run = run_of([batched(rng.integers(0, 48, 48)) for _ in range(8)])
    event = Event(id="e1", kind="periodic", step=5, last_step=47, period=6, reported=2.5)
    seen = Observation(run=replace(run, steps_per_epoch=6, batch_size=SIZE), events=(event,))
    assert outcome("padded-duplicates", seen) is None


def test_copies_are_replaced_or_dropped_and_each_sample_stays_once():
    batch = torch.arange(16.0).view(8, 2), torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    copies = lambda step: [2, 3, 4, 5, 6, 7] if step == 5 else []  # noqa: E731
    images, ids = ReplaceCopies(other_samples, copies).batch(step_at(5), batch)
    assert ids.tolist() == [0, 1, *[-1] * 6]
    assert images[:2].tolist() == batch[0][:2].tolist()
    _, ids = DropCopies(copies).batch(step_at(5), batch)
    assert ids.tolist() == [0, 1]
    for same in (ReplaceCopies(other_samples, copies), DropCopies(copies)):
        assert same.batch(step_at(4), batch) is batch
        assert same.batch(step_at(5, event=False), batch) is batch


def test_the_placebo_repeats_other_samples_in_the_same_places():
    def numbered(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(n, 2), torch.arange(100, 100 + n)

    batch = torch.zeros(8, 2), torch.tensor([7, 3, 7, 3, 7, 3, 7, 3])
    _, ids = CopyOthers(numbered, lambda step: [1, 0, 1, 0, 1, 0, 1, 0]).batch(step_at(5), batch)
    assert ids.tolist() == [101, 100] * 4


def test_the_interventions_of_a_record_act_on_its_own_rows():
    seen = padded()
    ids = seen.run.sample_ids
    assert ids is not None
    batch = (torch.zeros(8, 2), torch.from_numpy(ids[5]))
    first = find("padded-duplicates").interventions(seen, other_samples)[0]
    _, left = first.batch(step_at(5), batch)
    assert left.tolist() == [*ids[5][:2].tolist(), *[-1] * 6]
    placebo = find("padded-duplicates").placebo(seen, lambda n: (torch.zeros(n, 2), torch.arange(100, 100 + n)))
    assert placebo is not None
    _, repeated = placebo.batch(step_at(5), batch)
    assert len(set(repeated.tolist())) == 2
    assert (repeated.numpy()[:, None] == repeated.numpy()).tolist() == (ids[5][:, None] == ids[5]).tolist()


def test_the_cure_leaves_the_padded_batches_out_of_an_epoch():
    at = EpochContext(epoch=0, batch_size=4, previous=(), rng=np.random.default_rng(0))
    kept = LeaveCopiesOut().order(at, [np.array([0, 1, 2, 3]), np.array([4, 5, 4, 4])])
    assert [b.tolist() for b in kept] == [[0, 1, 2, 3]]


# --------------------------------------------------------------------------- bad-shard


def by_worker(
    n: int = 3,
    *,
    rise: float = 1.0,
    epochs: int = 10,
    steps: int = 31,
    bad: int = 1,
    reread: dict[int, float] | None = None,
) -> Observation:
    """A noisy loss whose batches of one of n workers are `rise` nats higher; as one periodic event at one of them."""
    rng = np.random.default_rng(0)
    index = np.tile(np.arange(steps), epochs)
    loss = np.exp(0.1 * rng.standard_normal(len(index)) + rise * (index % n == bad))
    run = Run(
        source="made by hand",
        reader="test",
        step=np.arange(len(index)),
        loss=loss,
        epoch=np.repeat(np.arange(epochs), steps),
        index=index,
        n_samples=np.full(len(index), SIZE),
        sample_ids=tuple(np.arange(SIZE) + SIZE * int(i) for i in index),
        steps_per_epoch=steps,
        batch_size=SIZE,
        facts={"num_workers": n},
    )
    event = Event(id="e1", kind="periodic", step=bad + n, last_step=len(run) - 1, period=steps, reported=2.7)
    return Observation(run=run, events=(event,), reread=reread or {})


def test_a_worker_that_stands_out_is_found():
    found = workers(by_worker(bad=2).run)
    assert found is not None
    assert found.odd == 2
    assert found.stands_out
    assert found.levels[2] == pytest.approx(1.0, abs=0.1)
    assert workers(by_worker(1).run) is None
    assert workers(replace(by_worker().run, facts={"num_workers": 3, "accumulate": 2})) is None


@pytest.mark.parametrize("kind", ["white", "red", "fixed order"])
def test_workers_that_are_alike_are_rarely_told_apart(kind):
    """At p <= .01 a few in a hundred at most, also where every epoch has the same ups and downs."""
    rng = np.random.default_rng(1)
    wrong, trials = 0, 60
    quiet = by_worker(rise=0.0, epochs=12).run
    steps = quiet.steps_per_epoch or 1
    for _ in range(trials):
        noise = rng.standard_normal(len(quiet))
        if kind == "red":
            for t in range(1, len(noise)):
                noise[t] += 0.9 * noise[t - 1]
        if kind == "fixed order":
            noise = 0.3 * noise + np.tile(rng.standard_normal(steps), 12)
        found = workers(replace(quiet, loss=np.exp(0.3 * noise)))
        assert found is not None
        wrong += found.stands_out
    assert wrong <= 3  # P(more than 3 of 60 at .01) = .003


def test_a_bad_worker_is_told_from_bad_data_by_reading_its_samples_again():
    steps = dict.fromkeys(range(9), 1.0)
    worker = by_worker(reread={**steps, 1: 0.0, 4: 0.0, 7: 0.0})
    data = by_worker(reread=steps)
    augmented = by_worker(reread=dict.fromkeys(steps, 0.0))
    cause = find("bad-shard")
    said = {
        name: cause.signature(seen) for name, seen in (("worker", worker), ("data", data), ("augmented", augmented))
    }
    assert all(s is not None and s.outcome == "likely" for s in said.values())
    assert [s.identity for s in said.values() if s] == [True, False, False]
    assert "something else than the samples" in cause.sentence(worker, worker.events)
    assert "bad whoever reads them" in cause.sentence(data, data.events)
    firsts = [cause.interventions(seen, other_samples)[0].words for seen in (worker, data, augmented)]
    assert "read again" in firsts[0]
    assert "another worker" in firsts[1]
    assert "read again" in firsts[2]


def test_an_event_at_batches_of_all_workers_is_no_bad_worker():
    seen = by_worker()
    assert outcome("bad-shard", seen) == "likely"
    # 31 steps are no multiple of 3 workers, but every pass begins with worker 0 again
    elsewhere = replace(seen.events[0], step=3)
    assert outcome("bad-shard", replace(seen, events=(elsewhere,))) is None
    assert outcome("bad-shard", by_worker(rise=0.0)) is None


def test_samples_are_read_again_by_their_ids():
    class Draws:
        def __call__(self, n: int):
            raise AssertionError("it reads by ids")

        def of(self, ids):
            return [int(i) for i in ids]

    seen = by_worker()
    again, elsewhere = find("bad-shard").interventions(seen, Draws())[:2]
    assert again.batch(step_at(4), "the batch") == list(range(32, 40))
    assert elsewhere.batch(step_at(4), "the batch") == list(range(24, 32))  # of worker 0, one step before
    assert again.batch(step_at(5, event=False), "the batch") == "the batch"
    assert ReadSamples(Draws(), lambda step: None).batch(step_at(4), "the batch") == "the batch"


# --------------------------------------------------------------------------- dataloader-reseed


def reseeded(**kw) -> Observation:
    seen = by_worker(rise=0.0)
    kw = {"same": 1.0, "random": 1.0, "alike": 1.0, "n": 32} | kw
    return replace(seen, same_draws=SameDraws(**kw))


def test_epochs_that_are_bitwise_the_same_although_they_draw_at_random_prove_a_generator_that_begins_anew():
    suspicion = find("dataloader-reseed").signature(reseeded())
    assert suspicion is not None
    assert suspicion.identity
    assert suspicion.events == ("e1",)
    assert outcome("dataloader-reseed", replace(reseeded(), same_draws=None)) is None
    assert outcome("dataloader-reseed", reseeded(same=0.5)) is None


def test_few_random_samples_may_come_out_alike_by_chance():
    assert outcome("dataloader-reseed", reseeded(random=0.3, n=32)) is None  # .7 ** 32 = 1e-5
    assert outcome("dataloader-reseed", reseeded(random=0.5, n=32)) == "likely"


def test_a_silent_generator_is_proven_without_an_event():
    suspicion = find("dataloader-reseed").signature(replace(reseeded(generator="numpy", n=0), events=()))
    assert suspicion is not None
    assert suspicion.events == ()
    assert "numpy's generator" in find("dataloader-reseed").sentence(reseeded(generator="numpy", n=0), ())


# --------------------------------------------------------------------------- resume-data-replay


def resumed(kind: str, *, event: int | None = 5) -> Observation:
    """40 batches of 8 in one epoch, stopped after 5 of them; then begun again, shuffled anew, or gone on with."""
    rng = np.random.default_rng(0)
    order = rng.permutation(320)
    rest = {"again": order, "shuffled": rng.permutation(320), "right": order[40:]}[kind]
    run = run_of([batched(order)[:5], batched(rest)], cut=(0,), size=320)
    run = replace(run, batch_size=SIZE, n_samples=np.full(len(run), SIZE))
    events = (
        [] if event is None else [Event(id="e1", kind="level-shift", step=event, last_step=event + 16, reported=0.5)]
    )
    return Observation(run=run, events=tuple(events))


def test_an_epoch_that_began_again_is_proven_by_its_ids():
    cause = find("resume-data-replay")
    for event, named in ((5, ("e1",)), (10, ("e1",)), (30, ()), (None, ())):
        suspicion = cause.signature(resumed("again", event=event))
        assert suspicion is not None
        assert suspicion.identity
        assert suspicion.events == named
    seen = resumed("again")
    assert "100 % of the 40 samples" in cause.sentence(seen, seen.events)


def test_an_epoch_that_went_on_is_no_replay():
    assert outcome("resume-data-replay", resumed("right")) is None


def test_another_shuffle_may_be_the_next_epoch_and_needs_an_event():
    cause = find("resume-data-replay")
    assert cause.signature(resumed("shuffled", event=None)) is None
    suspicion = cause.signature(resumed("shuffled"))
    assert suspicion is not None
    assert not suspicion.identity


def test_a_loop_that_leaves_every_epoch_early_means_to():
    rng = np.random.default_rng(0)
    run = run_of([batched(rng.permutation(80))[:5] for _ in range(6)], cut=(0, 1, 2, 3, 4), size=80)
    event = Event(id="e1", kind="level-shift", step=5, last_step=21, reported=0.5)
    assert outcome("resume-data-replay", Observation(run=run, events=(event,))) is None


def test_the_intervention_gives_new_samples_where_old_ones_were_drawn_again():
    class Draws:
        def __call__(self, n: int):
            raise AssertionError("it reads by ids")

        def of(self, ids):
            return {int(i) for i in ids}

    seen = resumed("again")
    ids = seen.run.sample_ids
    assert ids is not None
    known = {int(i) for b in ids[:5] for i in b}
    cause = find("resume-data-replay")
    (intervention,) = cause.interventions(seen, Draws())
    placebo = cause.placebo(seen, Draws())
    assert placebo is not None
    for step in (5, 9):
        assert not intervention.batch(step_at(step), "the batch") & known
        assert placebo.batch(step_at(step), "the batch") <= known
    for step in (3, 10, 30):  # before the stop, and where nothing is drawn again
        assert intervention.batch(step_at(step), "the batch") == "the batch"
        assert placebo.batch(step_at(step), "the batch") == "the batch"
    assert cause.moments(seen, seen.events) == [5]
