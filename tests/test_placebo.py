"""A placebo that changes nothing shows nothing: a cause is not proven beside it."""

from __future__ import annotations

import pytest
import torch
from conftest import recorded
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike import batches
from whyspike.cause import Cause, suspect
from whyspike.errors import NotReplayable
from whyspike.experiment import Experiment
from whyspike.interventions import SkipBatch
from whyspike.sample_interventions import ReplaceNamed, with_row
from whyspike.seams import Intervention, StepContext
from whyspike.training import Training


class FellowInItsPlace(Intervention):
    """The second sample of the batch before the event replaced by the first one."""

    words = "the other sample of the pair in its place"
    must_act = True

    def batch(self, at: StepContext, batch):
        if not at.is_control:
            return batch
        return with_row(batch, 1, batches.take(batch, [0], batches.size(batch)))


class OutlierOfAPair(Cause):
    """An outlier in a batch of two."""

    family = "data"

    def interventions(self, seen, draw):
        return [SkipBatch()]

    def placebo(self, seen, draw):
        return FellowInItsPlace()


def experiment(path, *, twins: bool) -> Experiment:
    """Batches of two samples, now and then with a target that is far off; with `twins` both are the same sample."""
    torch.manual_seed(0)
    x = torch.randn(200, 3)
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(200, 1)
    y[[150, 160, 170, 180, 190]] += 30.0
    order = [[i, i] for i in range(200)] if twins else [[i, (i + 1) % 150] for i in range(200)]
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    made = Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.02),
        loss_fn=lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]),
        loader=DataLoader(TensorDataset(x, y), batch_sampler=order),
        epochs=1,
    )
    return recorded(made, path)


@pytest.mark.parametrize("twins", [True, False], ids=["twins", "two samples"])
def test_a_placebo_that_does_nothing_is_refused(twins, tmp_path):
    made = experiment(tmp_path / "run", twins=twins)
    assert made.seen.events
    suspicion = suspect(OutlierOfAPair(), made.seen.events, [])
    with made.subject.kept():
        if twins:
            with pytest.raises(NotReplayable, match=r"its placebo \(the other sample .*\) changes nothing here"):
                made.trials(OutlierOfAPair(), suspicion)
        else:
            assert any(t.arm == "placebo" for t in made.trials(OutlierOfAPair(), suspicion))


def test_a_batch_of_two_that_are_both_named_has_no_other_sample():
    change = ReplaceNamed({3: (0, 1)}, lambda n: torch.zeros(n, 2), "others replaced", beside=True)
    at = StepContext(step=3, epoch=0, index=3, n_samples=2, batch_size=8, is_event=True)
    batch = torch.ones(2, 2)
    assert change.batch(at, batch) is batch  # which the trials then show to be no placebo
