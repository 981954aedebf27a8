from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.form import percent
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.sampling import Pass, Restart
    from whyspike.seams import Intervention

EARLY, LATE = 2, 16  # steps: a new level is told from 16 of them, and its edge may lie in the noise (detect.py)
NEAR = 2  # batches on either side, from which the placebo takes its samples
MOST_CUTS = 0.5  # of all passes: a loop that leaves most of them early means to


class ResumeDataReplay(Cause):
    """a resumed training whose loader began the epoch again.

    What happens:
        A checkpoint brings back the weights, the optimizer and the number of the step, but not the place in the data. The
        loader begins its epoch again: samples that were trained on just before are trained on once more, and with
        another shuffle some of that epoch never are.

    How it looks:
        The loss steps down when the training is resumed, because the network remembers those samples, and steps up to
        its old level when the place of the stop is reached again. On fixed samples nothing happens.

    How we test it:
        The ids of the samples before the stop and after it are compared: within one epoch they must have none in common.
        Equal ids are the proof. In the replay of the resumed steps the batches are replaced by samples that the epoch
        had not drawn yet: the step in the loss must go. As a placebo they are replaced by other samples that it had.

    What to do:
        Save the place in the data with the checkpoint, or skip what was drawn before.

    References:
        torchdata.stateful_dataloader.StatefulDataLoader. https://github.com/huggingface/accelerate/issues/2016 and
        issues/2823, https://github.com/webdataset/webdataset/issues/177: loaders that begin again after a resume.
    """

    family = "order"
    aliases = ("data-cursor", "resume-loader")
    needs = ("sample_ids",)
    rank = 14
    measure = "dip"
    title = "after the resume, the loader began the epoch again"

    def signature(self, seen: Observation) -> Suspicion | None:
        restarts = _restarts(seen)
        if not restarts:
            return None
        events = [e for e in seen.events if any(_touches(seen, e, r) for r in restarts)]
        first = restarts[0]
        step = int(seen.run.step[first.row])
        evidence = [
            Evidence(
                statement=f"samples drawn since step {step} that the same epoch had drawn before its stop",
                observed=f"{len(first.again)} of {first.n_before}",
                expected="0: an epoch draws every sample once",
            ),
            Evidence(
                statement="the order in which the loader went on",
                observed="that of the epoch's own begin, sample by sample" if first.same_order else "another shuffle",
                expected="the samples that were left",
            ),
        ]
        if first.left_out:
            evidence.append(
                Evidence(
                    statement="samples that neither part of the epoch drew", observed=f"{first.left_out}", expected="0"
                )
            )
        if not events and not _unmistakable(seen, first):
            return None
        return suspect(self, events, evidence, identity=_unmistakable(seen, first))

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import ReadSamples

        words = "samples in their place that the epoch had not drawn yet"
        return [ReadSamples(draw, _others(seen, known=False), words, "onward")]

    def moments(self, seen: Observation, events: Sequence[Event]) -> Sequence[int]:
        """Where samples begin to be drawn again."""
        return [int(seen.run.step[r.row]) for r in _restarts(seen)]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.interventions import ReadSamples

        words = "other samples in their place that the epoch had drawn before"
        return ReadSamples(draw, _others(seen, known=True), words, "onward")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        restarts = _restarts(seen)
        if not restarts:
            return super().sentence(seen, events)
        first = restarts[0]
        share = percent(len(first.again) / first.n_before)
        return (
            f"Before step {int(seen.run.step[first.row])} the epoch was stopped, and then it began again: {share} of the "
            f"{first.n_before} samples that it had drawn were trained on a second time."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="save the place in the data with the checkpoint",
                    code={
                        "torch": "from torchdata.stateful_dataloader import StatefulDataLoader\n"
                        "loader = StatefulDataLoader(dataset, batch_size=B, shuffle=True)\n"
                        "checkpoint['loader'] = loader.state_dict()      # and loader.load_state_dict(...) on resume",
                        "keras": "# keras.callbacks.BackupAndRestore restores the epoch, not the place in it:\n"
                        "callback = keras.callbacks.BackupAndRestore(folder, save_freq='epoch')",
                        "hf": "TrainingArguments(ignore_data_skip=False)   # skips what was drawn before",
                        "lightning": "# a loader with state_dict() and load_state_dict(), as StatefulDataLoader, is saved and "
                        "restored by the Trainer",
                    },
                    applicability="safe",
                )
            ),
            ScratchCure(
                cure=Cure(
                    words="or seed the shuffle by the epoch and skip the batches that were drawn before",
                    code={
                        "torch": "generator.manual_seed(seed + epoch)\n"
                        "for index, batch in enumerate(loader):\n    if index < first:\n        continue",
                        "hf": "loader = accelerator.skip_first_batches(loader, first)",
                    },
                    applicability="safe",
                )
            ),
        ]


def _restarts(seen: Observation) -> tuple[Restart, ...]:
    """The passes that were stopped and whose samples were then drawn again; none where a loop does so by habit."""
    found = seen.sampling
    if found is None or len(found.restarts) > MOST_CUTS * len(found.passes):
        return ()
    return tuple(r for r in found.restarts if len(r.again))


def _unmistakable(seen: Observation, restart: Restart) -> bool:
    """Whether it is the same epoch that began again, not the next one: its very order, where no two others are equal."""
    found = seen.sampling
    return found is not None and restart.same_order and not found.equal_orders[0]


def _end(seen: Observation, restart: Restart) -> int:
    """The first row after the restart from which on no sample is drawn again."""
    assert seen.sampling is not None
    after = next(p for p in seen.sampling.passes if p.first_row == restart.row)
    drawn_again = np.isin(after.ids, restart.again)
    last = int(np.flatnonzero(drawn_again)[-1])
    return restart.row + int(np.searchsorted(np.cumsum(after.sizes), last, side="right")) + 1


def _touches(seen: Observation, event: Event, restart: Restart) -> bool:
    """Whether an event begins where samples begin to be drawn again, or where they no longer are."""
    row = int(np.searchsorted(seen.run.step, event.step))
    return any(-EARLY <= row - edge < LATE for edge in (restart.row, _end(seen, restart)))


def _others(seen: Observation, *, known: bool) -> Callable[[int], np.ndarray | None]:
    """Of a step that draws samples again: other ones that the stopped epoch had drawn, or (not known) that it had not.

    Known ones are taken from about the same place of that epoch: what was drawn at its begin is remembered less.
    """
    rng = np.random.default_rng(0)
    run, found = seen.run, seen.sampling
    zones: list[tuple[int, int, Pass, np.ndarray]] = []
    for restart in _restarts(seen):
        assert found is not None
        cut, after = (next(p for p in found.passes if row in p.rows) for row in (restart.row - 1, restart.row))
        zones.append((restart.row, _end(seen, restart), cut, np.setdiff1d(after.ids, cut.ids)))

    def ids(step: int) -> np.ndarray | None:
        row = int(np.searchsorted(run.step, step))
        for first, end, cut, new in zones:
            if first <= row < end and run.sample_ids is not None:
                own, pool = run.sample_ids[row], new
                if known:
                    place = int(np.median(np.flatnonzero(np.isin(cut.ids, own)))) if np.isin(cut.ids, own).any() else 0
                    near = NEAR * len(own)
                    pool = np.setdiff1d(cut.ids[max(0, place - near) : place + near], own)
                return rng.choice(pool, len(own), replace=len(own) > len(pool)) if len(pool) else None
        return None

    return ids
