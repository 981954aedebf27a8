from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.form import percent
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.interventions import Where
    from whyspike.seams import Intervention

TIMES = 4  # so that the luck of another draw is half as large as that of one batch
SHOWN = 0.5  # of the pattern: in the first epochs the network does not know what it would know without augmentation
PLACES = 3  # of the epoch: a capsule covers some of its steps only


class DataloaderReseed(Cause):
    """a random generator that begins every epoch anew, so that each epoch draws the same augmentations.

    What happens:
        A generator that is seeded in every epoch, or that the dataset made before the workers were started and of which
        each worker gets a copy, hands out the same random numbers in every epoch. The k-th sample of an epoch is
        augmented like the k-th sample of every other one. The network sees far fewer variants than it seems, and a batch
        that drew strong augmentation is high at the same place of each epoch.

    How it looks:
        The loss has the same ups and downs in every epoch although the samples are shuffled, now and then a spike at
        one place of it. The fixed samples of the probe do not show it.

    How we test it:
        The loader is asked for the same samples in two epochs, with fresh seeds as a loader has them: bitwise equal
        samples, although one epoch draws at random, are the proof. (In the main process the recorded states of the
        generators are compared.) In the replay the batches at the highest places of the epoch are read again with
        other random numbers, and their rise must go; as a placebo the ordinary batches before them are.

    What to do:
        Make the generator in the worker, from the seed that torch gives it, or use torch's own random numbers.

    References:
        https://github.com/pytorch/pytorch/issues/5059 (numpy's global generator, seeded by torch since 1.9; a generator
        of your own is not). https://pytorch.org/docs/stable/notes/randomness.html#dataloader (worker_init_fn).
    """

    family = "order"
    aliases = ("worker-seed", "numpy-seed")
    needs = ("n_samples",)
    rank = 17
    measure = "height"
    title = "every epoch draws the same random augmentations"

    def signature(self, seen: Observation) -> Suspicion | None:
        found = seen.same_draws
        if found is None or not found.proven:
            return None
        events = [e for e in seen.events if e.kind == "periodic" and e.period == seen.run.steps_per_epoch]
        if found.generator is not None:
            evidence = [
                Evidence(
                    statement=f"states of {found.generator}'s generator at the same place of different epochs",
                    observed="equal, although drawing a batch moves it",
                    expected="never the same",
                )
            ]
        else:
            evidence = [
                Evidence(
                    statement="samples that the loader gives bitwise alike in two epochs",
                    observed=f"{percent(found.same)} of {found.n}",
                    expected=f"{percent(1 - found.random)}: {percent(found.random)} come out otherwise when a worker "
                    "reads them twice in one epoch",
                )
            ]
            if found.alike is not None:
                evidence.append(
                    Evidence(
                        statement="samples that two workers give alike at the same place of their stream",
                        observed=percent(found.alike),
                        expected=percent(1 - found.random),
                    )
                )
        return suspect(self, events, evidence, identity=True)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        return [_again(seen, draw, f"its samples read again with other random numbers, {TIMES} times over", "event")]

    def moments(self, seen: Observation, events: Sequence[Event]) -> Sequence[int] | None:
        """The steps at the highest places of the pattern that the epochs have in common."""
        from whyspike.pattern import pattern

        run, found = seen.run, pattern(seen.run)
        if found is None or run.index is None or run.epoch is None:
            return None
        shown = [e for e in np.unique(run.epoch).tolist() if found.share_in(run.loss[run.epoch == e]) >= SHOWN]
        highest = np.argsort(found.shape)[-PLACES:]
        return run.step[np.isin(run.index, highest) & np.isin(run.epoch, shown)].tolist()

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        return _again(seen, draw, "those of the ordinary batch before it read again, as often", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        where = "each worker of the loader begins every epoch with the same state of its generator"
        if seen.same_draws is not None and seen.same_draws.generator is not None:
            where = f"{seen.same_draws.generator}'s generator is seeded anew in every epoch"
        return f"Your random augmentations are the same in every epoch: {where}."

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="make the generator in the worker, from the seed that torch gives it",
                    code={
                        "torch": "def reseed(worker):\n    dataset = torch.utils.data.get_worker_info().dataset\n"
                        "    dataset.generator = np.random.default_rng(torch.initial_seed())\n"
                        "DataLoader(dataset, batch_size=B, shuffle=True, num_workers=W, worker_init_fn=reseed)",
                        "keras": "# in a keras.utils.PyDataset: self.generator = np.random.default_rng([seed, epoch]) in "
                        "on_epoch_end()",
                        "lightning": "lightning.seed_everything(seed, workers=True)   # for the global generators",
                    },
                    applicability="safe",
                )
            ),
            ScratchCure(
                cure=Cure(
                    words="or draw from torch's own random numbers, which every worker gets seeded anew",
                    code={"torch": "strength = torch.rand(())", "keras": "strength = keras.random.uniform(())"},
                    applicability="safe",
                )
            ),
        ]


def _again(seen: Observation, draw: Draw, words: str, where: Where) -> Intervention:
    from whyspike.interventions import ReadSamples
    from whyspike.sampling import ids_at

    def ids(step: int) -> np.ndarray | None:
        own = ids_at(seen.run, step)
        return None if own is None else np.tile(own, TIMES)

    return ReadSamples(draw, ids, words, where)
