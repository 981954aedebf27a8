"""A record that goes on after a resume, and an optimizer whose closure makes the gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import whyspike
from whyspike.errors import UnreadableRun
from whyspike.feed import Feed, Iterators, going_on
from whyspike.readers import read
from whyspike.runfolder import RunFolder


def loss_fn(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def parts(kind=torch.optim.SGD, **options):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    data = TensorDataset(torch.randn(50, 4), torch.randn(50, 1))
    return model, kind(model.parameters(), **{"lr": 0.01, **options}), DataLoader(data, batch_size=8, shuffle=True)


def run_steps(feed, model, optimizer, loader, epochs):
    for _ in range(epochs):
        feed.begins(loader)
        for batch in loader:
            feed.drawn(batch)
            loss = loss_fn(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            feed.loss(loss)
            feed.updated()


def test_a_feed_records_what_a_loop_records(tmp_path):
    model, optimizer, loader = parts()
    feed = Feed(whyspike.watch(model, optimizer, loss_fn=loss_fn, path=tmp_path / "fed"), Iterators())
    run_steps(feed, model, optimizer, loader, 3)
    feed.close()
    model, optimizer, loader = parts()
    with whyspike.watch(model, optimizer, loss_fn=loss_fn, path=tmp_path / "loop") as rec:
        for _ in range(3):
            for batch in rec.batches(loader):
                loss = loss_fn(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rec.step(loss)
    fed, own = read(tmp_path / "fed"), read(tmp_path / "loop")
    for column in ("loss", "step", "epoch", "index", "n_samples", "lr"):
        assert getattr(fed, column).tolist() == getattr(own, column).tolist()
    assert [ids.tolist() for ids in fed.sample_ids] == [ids.tolist() for ids in own.sample_ids]
    assert [m.name for m in fed.marks if m.name == "epoch"] == ["epoch"] * 3


def test_a_resumed_record_leaves_out_what_the_checkpoint_did_not_know(tmp_path):
    model, optimizer, loader = parts()
    feed = Feed(whyspike.watch(model, optimizer, loss_fn=loss_fn, path=tmp_path / "run"), Iterators())
    run_steps(feed, model, optimizer, loader, 2)
    state = feed.state
    assert (state["step"], state["epoch"], state["index"]) == (14, 2, 0)
    run_steps(feed, model, optimizer, loader, 1)  # these steps are lost
    feed.close()
    with open(tmp_path / "run" / "record.frames", "ab") as file:
        file.write(b"WSPK cut off")  # as a killed process leaves it

    model, optimizer, loader = parts()
    options, at = going_on({"loss_fn": loss_fn}, state)
    feed = Feed(whyspike.watch(model, optimizer, **options), Iterators(), **at)
    run_steps(feed, model, optimizer, loader, 2)
    feed.close()
    run = read(tmp_path / "run")
    assert run.step.tolist() == list(range(28))
    assert run.epoch.tolist() == [k // 7 for k in range(28)]
    assert next(n.text for n in run.notes if n.id == "resume-overlap").startswith(
        "the training was resumed at step 14; 7 steps"
    )
    assert "truncated-tail" not in {n.id for n in run.notes}
    assert [m.step for m in run.marks if m.name == "resumed"] == [14]


def test_only_a_run_can_go_on(tmp_path):
    with pytest.raises(UnreadableRun, match="no run folder"):
        RunFolder.reopen(tmp_path, 1 << 20, resume=3)
    assert going_on({"path": None}, {"path": str(tmp_path), "step": 3, "epoch": 0, "index": 3}) == ({"path": None}, {})


def test_gradients_that_a_closure_makes_are_measured(tmp_path):
    model, optimizer, loader = parts(torch.optim.LBFGS, lr=0.1, max_iter=2)
    norms = []
    with whyspike.watch(model, optimizer, path=tmp_path / "run", closely=True) as rec:
        for batch in rec.batches(loader):
            calls = []

            def closure(batch=batch, calls=calls):
                optimizer.zero_grad()
                loss = loss_fn(model, batch)
                loss.backward()
                if not calls:
                    norms.append(torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()])))
                calls.append(loss)
                return loss

            rec.step(optimizer.step(closure))
            assert len(calls) > 1
    found = read(rec.path).signals["gradient_norm"]
    assert found.value.tolist() == pytest.approx([float(norms[k]) for k in found.step])
