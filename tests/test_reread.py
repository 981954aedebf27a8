"""Reading samples again: equal rows, recorded batches against their data set, and epochs that repeat each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

import whyspike
from whyspike.cases.bad_shard import WorkerLoader
from whyspike.cases.bad_worker import DigitFile
from whyspike.cases.dataloader_reseed import CroppedDigits, reseed
from whyspike.readers import read
from whyspike.replay import Subject
from whyspike.reread import SameDraws, reread, same_draws, same_rows


def loss_fn(model: nn.Module, batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def recorded(dataset: Dataset, path, *, epochs: int = 3, each_epoch=None, **loader) -> Subject:
    """A small training on it, as what can be replayed."""
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = WorkerLoader(dataset, batch_size=16, shuffle=True, **loader)
    with whyspike.watch(model, optimizer, loss_fn=loss_fn, path=path) as rec:
        for _ in range(epochs):
            if each_epoch is not None:
                each_epoch()
            for batch in rec.batches(batches):
                loss = loss_fn(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rec.step(loss)
    subject = Subject.of(rec, read(path))
    assert subject is not None
    return subject


def test_rows_are_compared_bitwise():
    a = {"x": torch.arange(6.0).view(3, 2), "y": np.array([1.0, np.nan, 3.0]), "n": 3}
    b = {"x": a["x"].clone(), "y": a["y"].copy(), "n": 3}
    b["x"][2, 1] += 1e-6
    same = same_rows(a, b, 3)
    assert same is not None
    assert same.tolist() == [True, True, False]
    half = same_rows([torch.ones(2, dtype=torch.bfloat16)], [torch.ones(2, dtype=torch.bfloat16)], 2)
    assert half is not None
    assert half.all()
    assert same_rows([torch.ones(2)], [torch.ones(2), torch.ones(2)], 2) is None
    other = same_rows([torch.ones(2, 3)], [torch.ones(2, 4)], 2)
    assert other is not None
    assert not other.any()


@pytest.mark.parametrize("bad", [None, 1])
def test_recorded_batches_are_read_again_and_a_bad_worker_differs(bad, tmp_path):
    subject = recorded(DigitFile(160, bad), tmp_path / "run", num_workers=2)
    shares = reread(subject)
    assert shares
    index = subject.run.index
    assert index is not None
    assert {int(index[step]) % 2 for step in shares} == {0, 1}
    for step, share in shares.items():
        assert share == (0.0 if bad is not None and index[step] % 2 == bad else 1.0)


@pytest.mark.parametrize("sick", [True, False])
def test_workers_that_begin_every_epoch_alike_are_found(sick, tmp_path):
    subject = recorded(CroppedDigits(160, 0), tmp_path / "run", num_workers=2, worker_init_fn=None if sick else reseed)
    before = torch.get_rng_state()
    found = same_draws(subject)
    assert torch.equal(before, torch.get_rng_state())
    assert found is not None
    assert found.random > 0.5
    assert found.proven == sick
    assert (found.alike == 1.0) == sick


def test_a_deterministic_loader_repeats_nothing_that_is_random(tmp_path):
    assert same_draws(recorded(DigitFile(160, None), tmp_path / "run", num_workers=2)) is None
    assert same_draws(recorded(DigitFile(160, None), tmp_path / "other")) is None


class Globally(DigitFile):
    """Noise from numpy's global generator, in the main process."""

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = super().__getitem__(i)
        noise = np.random.standard_normal(64)  # noqa: NPY002
        return image + torch.from_numpy(noise).float(), label


@pytest.mark.parametrize("sick", [True, False])
def test_a_generator_that_is_seeded_in_every_epoch_is_found_in_the_record(sick, tmp_path):
    def seed() -> None:
        np.random.seed(0)  # noqa: NPY002

    found = same_draws(recorded(Globally(160, None), tmp_path / "run", epochs=6, each_epoch=seed if sick else None))
    if sick:
        assert found == SameDraws(same=1.0, random=1.0, alike=None, n=0, generator="numpy")
        assert found.proven
    else:
        assert found is None


def test_what_cannot_be_read_again_is_passed_over(tmp_path):
    class Fragile(DigitFile):
        broken = False

        def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
            if self.broken:
                raise OSError("the disk is gone")
            return super().__getitem__(i)

    dataset = Fragile(160, None)
    subject = recorded(dataset, tmp_path / "run")
    dataset.broken = True
    assert reread(subject) == {}
