from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.form import percent
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.interventions import Where
    from whyspike.seams import Intervention
    from whyspike.workers import Workers

MOST = 0.8  # of an event's steps must be the worker's: the same share that an intervention must remove
SPLIT = 0.01  # as for any test of a period (periods.ALPHA)
Fault = Literal["worker", "data", "unknown"]
AGAIN = "its own samples read again by the main process"


class BadShard(Cause):
    """one worker, or one shard of the data, that delivers corrupt samples.

    What happens:
        The batches of a loader come from its worker processes in turn. When one of them is wrong (a file handle that was
        opened before the fork, another version of a file, a normalisation or a seed of its own) or reads a shard that
        is, every n-th batch is. The network takes a step on it all the same.

    How it looks:
        The loss is high on every n-th step, n being the number of workers, and ordinary in between. The period is none
        of the data's own: it changes with num_workers.

    How we test it:
        The loss is compared between the workers, against rounds that are rotated independently in each epoch. Then the
        samples of recorded batches are read again by the main process: where those of one worker come out different and
        those of the others the same, the worker is wrong. In the replay the batch is replaced by its own samples, read
        again: if it was the worker, the spike goes. As a placebo an ordinary batch is read again. Where the samples are
        the same, the spike follows the data: other samples must remove it, and reading its own again must not.

    What to do:
        Find out what differs in that worker: open files in the worker, not before the fork; seed it from
        torch.initial_seed(). Where the data are bad, leave the shard out.

    References:
        torch.utils.data, multi-process data loading (batch k comes from worker k mod num_workers). h5py and SQLite say
        that handles must not be used across a fork. The rotations: the segment circular shift of `whyspike.periods`.
    """

    family = "order"
    aliases = ("bad-worker", "bad-rank", "corrupt-shard")
    needs = ("n_samples",)
    rank = 16
    measure = "deviation"
    title = "one worker of the loader delivers bad batches"

    def signature(self, seen: Observation) -> Suspicion | None:
        found = _workers(seen)
        if found is None or not found.stands_out:
            return None
        shares = {e.id: _share(seen, e, found) for e in seen.events}
        events = [e for e in seen.events if shares[e.id] >= MOST and e.kind in ("periodic", "spike", "dip")]
        if not events:
            return None
        others = np.delete(found.levels, found.odd)
        evidence = [
            Evidence(
                statement=f"log loss of the batches of worker {found.odd}, less that of the others in the same round",
                observed=f"{found.levels[found.odd]:+.2f} nats",
                expected=f"0; the others lie within {np.abs(others - others.mean()).max():.2f} nats of each other",
                p_value=found.p_value,
            ),
            Evidence(
                statement=f"steps of these events whose batch came from worker {found.odd}",
                observed=percent(float(np.mean([shares[e.id] for e in events]))),
                expected=f"{percent(1 / found.n)}, one in {found.n} workers",
            ),
        ]
        own, rest = _reread(seen, found)
        if own is not None and rest is not None:
            evidence.append(
                Evidence(
                    statement="samples that the main process reads exactly as recorded",
                    observed=f"{percent(own)} of worker {found.odd}, {percent(rest)} of the others",
                    expected="the same for all workers: 100 %, or fewer where samples are augmented",
                )
            )
        faulty = _where(seen) == "worker"
        if _by_chance(seen):
            evidence.append(
                Evidence(
                    statement="chance that a random split of the samples makes one worker's so much harder or easier",
                    observed=f"{found.split_p:.2g}; a worker has the same samples in every epoch",
                    expected=f"below {SPLIT}, if they are bad",
                    p_value=found.split_p,
                )
            )
            return suspect(self, events, evidence, harm="none")
        return suspect(self, events, evidence, identity=faulty)

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import ReadSamples, SkipBatch

        if _by_chance(seen):
            return []  # other samples differ as well: there is nothing to take away
        elsewhere = ReadSamples(draw, _neighbours(seen), "samples that another worker was given in their place")
        if _where(seen) == "data":
            return [elsewhere, SkipBatch()]
        return [_again(seen, draw), elsewhere, SkipBatch()]

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        if _where(seen) == "data":
            return _again(seen, draw)
        return _again(seen, draw, "the samples of the ordinary batch before it read again", "control")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        found = _workers(seen)
        if found is None:
            return super().sentence(seen, events)
        every = f"Every {found.n}{_ordinal(found.n)} batch comes from worker {found.odd} of the loader"
        if _by_chance(seen):
            which = "harder" if found.levels[found.odd] > 0 else "easier"
            return f"{every}, whose samples are {which}, by no more than a random split of the samples makes them."
        if _where(seen) == "data":
            return f"{every}, and the samples that it reads are bad whoever reads them."
        return f"{every}, which delivers something else than the samples that it was asked for."

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        worker = Cure(
            words="open files and make generators in the worker, not before it is forked",
            code={
                "torch": "def __getitem__(self, i):\n    if self.file is None:            # once in each worker\n"
                "        self.file = h5py.File(self.path)\n    return self.file['x'][i]",
                "keras": "# in a keras.utils.PyDataset: open the file in __getitem__, not in __init__",
            },
            applicability="manual",
        )
        alone = Cure(
            words="to see whether it is gone, read in the main process",
            code={
                "torch": "DataLoader(dataset, batch_size=B, shuffle=True, num_workers=0)",
                "keras": "PyDataset(workers=1, use_multiprocessing=False)",
            },
            applicability="safe",
        )
        shard = Cure(
            words="leave the shard out, or repair it",
            code={
                "torch": "good = [i for i in range(len(dataset)) if i not in bad_ids]\ndataset = torch.utils.data.Subset(dataset, good)"
            },
            applicability="manual",
        )
        found = {"worker": [worker, alone], "data": [shard], "unknown": [worker, alone, shard]}[_where(seen)]
        return [ScratchCure(cure=c) for c in found]


def _workers(seen: Observation) -> Workers | None:
    from whyspike.workers import workers

    return workers(seen.run)


def _by_chance(seen: Observation) -> bool:
    """Whether the worker's own samples differ by no more than a random split of all samples makes them."""
    found = _workers(seen)
    return found is not None and found.split_p > SPLIT and _where(seen) != "worker"


def _share(seen: Observation, event: Event, found: Workers) -> float:
    """Of an event's occurrences, how many are batches of the odd worker."""
    from whyspike.periods import occurrences

    rows = np.searchsorted(seen.run.step, occurrences(seen.run, event))
    rows = rows[rows < len(found.of_row)]
    return float(np.mean(found.of_row[rows] == found.odd)) if len(rows) else 0.0


def _reread(seen: Observation, found: Workers) -> tuple[float | None, float | None]:
    """The share of samples that read the same again: of the odd worker, and of the others."""
    rows = {step: int(np.searchsorted(seen.run.step, step)) for step in seen.reread}
    own = [v for step, v in seen.reread.items() if found.of_row[rows[step]] == found.odd]
    rest = [v for step, v in seen.reread.items() if found.of_row[rows[step]] != found.odd]
    return float(np.mean(own)) if own else None, float(np.mean(rest)) if rest else None


def _where(seen: Observation) -> Fault:
    """Whether the samples of the odd worker's batches are other ones than those in the data set."""
    found = _workers(seen)
    if found is None:
        return "unknown"
    own, rest = _reread(seen, found)
    if own is None or rest is None or rest < 1.0:
        return "unknown"  # samples are drawn at random, so that no two readings are the same
    return "worker" if own < 1.0 else "data"


def _neighbours(seen: Observation):
    """Of a step: the ids of the nearest batch of another worker, in either direction."""
    from whyspike.sampling import ids_at

    run, found = seen.run, _workers(seen)

    def ids(step: int) -> np.ndarray | None:
        row = int(np.searchsorted(run.step, step))
        for near in (row - 1, row + 1):
            if found is not None and 0 <= near < len(run) and found.of_row[near] != found.of_row[row]:
                return ids_at(run, int(run.step[near]))
        return None

    return ids


def _again(seen: Observation, draw: Draw, words: str = AGAIN, where: Where = "event") -> Intervention:
    from whyspike.interventions import ReadSamples
    from whyspike.sampling import ids_at

    return ReadSamples(draw, lambda step: ids_at(seen.run, step), words, where)


def _ordinal(n: int) -> str:
    return {2: "nd", 3: "rd"}.get(n, "th")
