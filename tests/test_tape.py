"""The tape of a loss: what is recorded in one step gives, on other batches and weights, what the code itself gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from whyspike.attribute import per_sample
from whyspike.errors import NotReplayable
from whyspike.tape import Recording, Tape
from whyspike.tapedloss import TapedLoss

Body = Callable[[nn.Module, object], torch.Tensor]


def batch_of(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 4, generator=draw), torch.randint(3, (n,), generator=draw)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


def recorded(body: Body, model: nn.Module, batch) -> Tape | str:
    recording = Recording(batch, len(batch[0]))
    recording.start()
    loss = body(model, batch)
    assert recording.stop()
    return recording.finish(loss, batch)


def mean(model, batch):
    x, y = batch
    return F.cross_entropy(model(x.view(x.size(0), -1)), y)


def over_its_size(model, batch):
    x, y = batch
    return F.cross_entropy(model(x.flatten(1)), y, reduction="sum") / len(x) / x.shape[0]


def noise_and_penalty(model, batch):
    x, y = batch
    x = x.reshape(len(x), 8)
    x = x + 0.1 * torch.randn(x.shape)
    penalty = sum(p.pow(2).sum() for p in model.parameters())
    accuracy = (model(x).argmax(1) == y).float().mean()  # of no use to the loss; it draws for dropout all the same
    return F.cross_entropy(model(x), y) + 1e-3 * penalty + 0 * accuracy.item()


def in_place(model, batch):
    x, y = batch
    h = x.flatten(1).clone()
    h[:, 1:3].mul_(2.0)
    h[y == 0] = 0.0
    return F.cross_entropy(model(h), y)


def autocast(model, batch):
    x, y = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(x.flatten(1))
    with torch.no_grad():
        weight = scores.float().exp().mean()
    return weight * F.cross_entropy(scores.float(), y)


BODIES = [mean, over_its_size, noise_and_penalty, in_place, autocast]


@pytest.mark.parametrize("body", BODIES, ids=lambda b: b.__name__)
@pytest.mark.parametrize("n", [16, 5, 11])
def test_another_batch_on_other_weights_gives_the_same_bits_and_gradients(body, n):
    model = network()
    tapes = [recorded(body, model, batch_of(16)), recorded(body, model, batch_of(5))]
    assert all(isinstance(t, Tape) for t in tapes), tapes
    loss_fn = TapedLoss(tapes)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.01)
    batch, results = batch_of(n, seed=3), []
    for function in (body, loss_fn):
        model.load_state_dict(model.state_dict() | {"1.running_mean": torch.zeros(6)})
        model.zero_grad()
        torch.manual_seed(7)
        loss = function(model, batch)
        loss.backward()
        results.append([loss.detach(), torch.rand(()), *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_eval_mode_acts_on_what_was_recorded_in_train_mode():
    model = network()
    loss_fn = TapedLoss([recorded(mean, model, batch_of(16))])
    model.eval()
    assert torch.equal(loss_fn(model, batch_of(16, 1)), mean(model, batch_of(16, 1)))


def test_a_number_that_may_be_the_size_is_not_guessed_at():
    model = network()
    loss_fn = TapedLoss([recorded(over_its_size, model, batch_of(16))])
    loss_fn(model, batch_of(16, 1))
    with pytest.raises(NotReplayable, match="a number that may be the size of the batches, 16"):
        loss_fn(model, batch_of(8))


def test_a_constant_stays_one():
    def constant(model, batch):
        return mean(model, batch) / 16

    model = network()
    loss_fn = TapedLoss([recorded(constant, model, batch_of(16)), recorded(constant, model, batch_of(5))])
    model.eval()
    assert torch.equal(loss_fn(model, batch_of(8)), constant(model, batch_of(8)))


def test_recording_changes_nothing():
    def train(tape: bool) -> list[torch.Tensor]:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(6):
            batch = batch_of(16, step)
            recording = Recording(batch, 16) if tape else None
            if recording is not None:
                recording.start()
            loss = noise_and_penalty(model, batch)
            if recording is not None:
                recording.stop()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [*model.state_dict().values(), torch.rand(3)]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


def test_a_loss_that_does_not_come_from_the_batch_is_said_to():
    model = network()
    old = mean(model, batch_of(16))

    def stale(model, batch):
        return old + mean(model, batch)

    assert recorded(stale, model, batch_of(16)) == (
        "the loss uses a tensor with gradients that was computed before the batch was drawn"
    )
    assert "was not computed by torch functions" in recorded(lambda model, batch: old, model, batch_of(16))


def test_the_division_of_an_accumulating_loop_is_seen():
    model = network()
    made = recorded(lambda model, batch: mean(model, batch) / 4, model, batch_of(16))
    assert made.divided_by() == 4
    model.eval()
    assert torch.equal(made.undivided()(model, batch_of(16, 1)), mean(model, batch_of(16, 1)))
    assert recorded(mean, model, batch_of(16)).divided_by() is None


# --------------------------------------------------------------------------- tapes of single steps

OWN = torch.Generator().manual_seed(3)


def with_its_step(step: int) -> Body:
    """A number that the script computes anew in every step, and noise from a generator of its own."""

    def body(model, batch):
        x, y = batch
        noise = 0.1 * torch.randn(x.shape, generator=OWN)
        return F.cross_entropy(model((x + noise).flatten(1)), y, reduction="sum") / len(x) * (1 + 0.01 * step)

    return body


@pytest.mark.parametrize("n", [16, 5])
def test_a_tape_of_the_step_has_its_numbers_and_its_own_generator(n):
    model = network()
    model.eval()
    sizes = [recorded(with_its_step(0), model, batch_of(k)) for k in (16, 5)]
    states, steps = {}, {}
    for step in (7, 8):
        states[step] = OWN.get_state()
        steps[step] = [recorded(with_its_step(step), model, batch_of(16, seed=step))]
    loss_fn = TapedLoss(sizes, steps)
    after = OWN.get_state()
    batch = batch_of(n, seed=9)
    with loss_fn.kept():
        for step in (8, 7):
            loss_fn.stands(step)
            ours = loss_fn(model, batch)
            OWN.set_state(states[step])
            assert torch.equal(ours, with_its_step(step)(model, batch)) is True
            with loss_fn.nowhere():
                assert not torch.equal(loss_fn(model, batch), ours)  # as one function, whatever the step
    assert torch.equal(OWN.get_state(), after)


def test_where_the_script_would_have_gone_another_way_the_tape_says_so():
    def decides(model, batch):
        x, y = batch
        h = x.flatten(1)
        if h.abs().max() > 10:
            h = h.clamp(-10, 10)
        return F.cross_entropy(model(h), y)

    model = network()
    loss_fn = TapedLoss([recorded(decides, model, batch_of(16))])
    loss_fn(model, batch_of(16, seed=1))
    x, y = batch_of(16)
    with pytest.raises(NotReplayable, match="decides by a number"):
        loss_fn(model, (x * 100, y))


def tokens(model, batch):
    x, y = batch
    scores = model(x.view(x.size(0), -1)).unsqueeze(1).expand(-1, 4, -1)
    return F.cross_entropy(scores.reshape(-1, 3), y.repeat_interleave(4))


def summed(model, batch):
    return nn.CrossEntropyLoss(reduction="sum")(model(batch[0].flatten(1)), batch[1])


@pytest.mark.parametrize("body", [mean, tokens, summed], ids=lambda b: b.__name__)
def test_the_losses_of_single_samples_are_those_of_copies_of_each(body):
    model = network()
    loss_fn = TapedLoss([recorded(body, model, batch_of(16))])
    batch = batch_of(16, seed=3)
    model.eval()
    by_copies = per_sample(model, body, batch, 32)
    assert loss_fn.per_sample(model, batch, 32) is not None
    assert np.allclose(per_sample(model, loss_fn, batch, 32), by_copies, rtol=1e-5)


def test_with_batch_statistics_the_samples_stay_among_the_others():
    model = network()
    model[3].p = 0.0
    loss_fn = TapedLoss([recorded(mean, model, batch_of(16))])
    x, y = batch = batch_of(16, seed=3)
    own = F.cross_entropy(model(x.flatten(1)), y, reduction="none")
    assert np.allclose(loss_fn.per_sample(model, batch, 32), own.detach(), rtol=1e-6)


def test_a_weighted_mean_is_no_mean_of_its_rows():
    weight = torch.tensor([1.0, 5.0, 0.2])

    def weighted(model, batch):
        return F.cross_entropy(model(batch[0].flatten(1)), batch[1], weight)

    model = network()
    assert TapedLoss([recorded(weighted, model, batch_of(16))]).per_sample(model, batch_of(16), 32) is None
