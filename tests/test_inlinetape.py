"""Batches that no loader draws: found on the way to the loss, and replayed bit by bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_scripts import python, same_weights, written
from torch import nn

from whyspike.inlinetape import NO_BATCH, InlineRecording

FEATURES = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
CLASSES = torch.randint(3, (200,), generator=torch.Generator().manual_seed(2))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def loss_of(model, x, y):
    return F.cross_entropy(model(x), y)


def drawn_before(model, rng):
    rows = rng.integers(200, size=16)
    return loss_of(model, FEATURES[rows], CLASSES[rows])


def drawn_by_torch_after_a_penalty(model, rng):
    penalty = sum(p.pow(2).sum() for p in model.parameters())
    rows = torch.randint(200, (16,))
    x, y = FEATURES[rows], CLASSES[rows]
    return loss_of(model, x, y) + 1e-3 * penalty


def next_one_before_the_loss(model, rng):
    rows = torch.randint(200, (16,))
    scores = model(FEATURES[rows])
    torch.randint(200, (16,))
    return F.cross_entropy(scores, CLASSES[rows])


def after_an_evaluation(model, rng):
    model.eval()
    with torch.no_grad():
        loss_of(model, FEATURES, CLASSES)
    model.train()
    return drawn_before(model, rng)


def functional(model, rng):
    rows = rng.integers(200, size=16)
    h = F.linear(FEATURES[rows], model[0].weight, model[0].bias).relu()
    return F.cross_entropy(F.dropout(F.linear(h, model[4].weight, model[4].bias), 0.1), CLASSES[rows])


BODIES = [drawn_before, drawn_by_torch_after_a_penalty, next_one_before_the_loss, after_an_evaluation, functional]


def recorded(body, model, seed=0):
    """The loss of a step, what was found on the way to it, and the generator when its network began."""
    states = []
    recording = InlineRecording(lambda: states.append(torch.get_rng_state()))
    recording.start()
    loss = body(model, np.random.default_rng(seed))
    assert recording.stop()
    return loss, recording.found(loss), states


@pytest.mark.parametrize("body", BODIES, ids=lambda b: b.__name__)
def test_the_step_again_is_the_same_bit_by_bit_and_its_batch_is_known(body):
    model = network()
    torch.manual_seed(5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loss, found, states = recorded(body, model)
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    tape, batch = found
    assert [tuple(t.shape) for t in batch] == [(16, 6), (16,)]
    assert len(states) == 1
    model.load_state_dict(before)
    model.zero_grad()
    torch.set_rng_state(states[0])
    again = tape(model, tuple(t.clone() for t in batch))
    again.backward()
    assert torch.equal(again, loss)
    ours = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients, ours, strict=True))


def test_other_samples_and_weights_give_what_the_code_gives():
    model = network()
    _, (tape, _), _ = recorded(drawn_before, model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    model.eval()
    x, y = FEATURES[:5], CLASSES[:5]
    assert torch.equal(tape(model, (x, y)), loss_of(model, x, y))


def test_recording_changes_nothing():
    def train(tape: bool) -> list[torch.Tensor]:
        model = network()
        torch.manual_seed(3)
        rng = np.random.default_rng(3)
        for body in BODIES:
            recording = InlineRecording(lambda: None)
            if tape:
                recording.start()
            loss = body(model, rng)
            if tape:
                assert recording.stop()
            loss.backward()
        return [*(p.grad for p in model.parameters()), *model.buffers(), torch.rand(3)]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


def test_a_loss_without_samples_is_said_to_be_one():
    weight = nn.Parameter(torch.ones(3))
    assert recorded(lambda model, rng: (weight * 2.0).sum(), network())[1] == NO_BATCH


SCRIPT = """
    import numpy as np
    import torch
    from sklearn.datasets import load_diabetes
    from torch import nn

    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    features, target = load_diabetes(return_X_y=True)
    features = (features / features.std(0)).astype(np.float32)
    target = ((target - target.mean()) / target.std()).astype(np.float32)[:, None]
    target[7] = 60.0

    def get_batch(low, high):
        rows = np.random.randint(low, high, 16)
        return torch.from_numpy(features[rows]), torch.from_numpy(target[rows])

    model = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    x, y = get_batch(0, 400)
    for step in range(160):
        if step % 20 == 0:
            model.eval()
            with torch.no_grad():
                print(step, sum(nn.functional.mse_loss(model(a), b) for a, b in [get_batch(400, 442)] * 4).item())
            model.train()
        loss = nn.functional.mse_loss(model(x), y)
        x, y = get_batch(0, 400)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), "model.pt")
"""


@pytest.mark.slow
def test_a_script_without_a_loader_is_replayed(tmp_path):
    script = written(tmp_path, SCRIPT)
    plain = python(tmp_path / "plain", script)
    ours = python(tmp_path / "ours", "-m", "whyspike", "prove", "--budget", "1", "--format", "json", script)
    made = json.loads(ours.stdout)
    events = [e for e in made["events"] if e["reported"] > 20]
    assert events
    # Its steps were replayed: the batch did it, the weights before it were as ever.
    factors = [e["attribution"] for e in events if e["attribution"]]
    assert factors
    assert all(f["data"] > 5 and 0.5 < f["weights"] < 2 for f in factors), factors
    assert plain.stdout in ours.stderr
    assert same_weights(tmp_path / "plain" / "model.pt", tmp_path / "ours" / "model.pt")
