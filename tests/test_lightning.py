"""Lightning: what `Trainer.fit` is to the recorder."""

from __future__ import annotations

import logging
import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

L = pytest.importorskip("lightning", reason="needs the extra lightning")

from whyspike.cases.double_averaged_loss import Detector, multibox_loss_averaged_twice, scenes  # noqa: E402
from whyspike.integrations.lightning import SpikeRecorder, watch  # noqa: E402
from whyspike.readers import read  # noqa: E402
from whyspike.replay import Subject  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice on workers and loggers
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def loader(n=330, size=32):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x[:n] / 16, dtype=torch.float32), torch.tensor(y[:n]))
    return DataLoader(data, batch_size=size, shuffle=True)


class Net(L.LightningModule):
    def __init__(self, by_hand=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 10))
        self.automatic_optimization = not by_hand

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(folder, callbacks=(), *, module=None, checkpoint=None, **options):
    L.seed_everything(0, verbose=False)
    module = Net() if module is None else module
    settings = {"max_epochs": 2, "gradient_clip_val": 1.0, "enable_checkpointing": False, **options}
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        **settings,
    )
    trainer.fit(module, loader(), loader(64), ckpt_path=checkpoint)
    return module, trainer


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


KINDS = {
    "plain": {},
    "accumulated, validated in the middle": {"accumulate_grad_batches": 2, "val_check_interval": 4},
    "bfloat16": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_fit_is_bitwise_the_same_and_its_replay_is_bitwise_the_record(kind, tmp_path):
    plain, _ = fit(tmp_path, **KINDS[kind])
    spikes = SpikeRecorder(tmp_path / "run", closely=True)
    watched, _ = fit(tmp_path, [spikes], **KINDS[kind])
    assert same(plain, watched)
    run = read(spikes.path)
    accumulated = "accumulated" in kind
    assert run.n_samples.tolist() == ([64] * 5 + [10] if accumulated else [32] * 10 + [10]) * 2
    assert sorted(i for ids in run.sample_ids[: len(run) // 2] for i in ids) == list(range(330))
    assert run.steps_per_epoch == (6 if accumulated else 11)
    assert len(run.signals["gradient_norm"].value)
    assert max(run.signals["gradient_norm"].value) <= 1.0 + 1e-5  # after the user's clipping, as in a loop
    assert run.signals["clip_max_norm"].value.tolist() == [1.0] * len(run)
    assert [m.name for m in run.marks].count("evaluation") == (4 if "middle" in kind else 2)
    subject = Subject.of(spikes.recorder, run)
    with subject.kept():
        subject.learn_convention()  # Lightning divides the loss of a cut window by the nominal number of batches
        for path in run.capsules:
            replayed = subject.replay(subject.window(subject.capsule(path).steps[0].step))
            assert replayed.noise == 0.0
    assert same(plain, watched)


def test_a_resumed_training_goes_on_in_the_same_record(tmp_path):
    first = SpikeRecorder(tmp_path / "run")
    _, trainer = fit(tmp_path, [first], max_epochs=1)
    checkpoint = tmp_path / "last.ckpt"
    trainer.save_checkpoint(checkpoint)
    assert torch.load(checkpoint, weights_only=False)["callbacks"]

    saving = SpikeRecorder(tmp_path / "cut")
    kept = L.pytorch.callbacks.ModelCheckpoint(tmp_path / "kept", every_n_train_steps=11, save_top_k=-1)
    fit(tmp_path, [saving, kept], max_epochs=2, enable_checkpointing=True)
    checkpoint = next((tmp_path / "kept").glob("*step=11.ckpt"))
    resumed = SpikeRecorder()
    fit(tmp_path, [resumed], checkpoint=checkpoint, max_epochs=2)
    assert resumed.path == saving.path.resolve()
    run = read(resumed.path)
    assert run.step.tolist() == list(range(22))
    assert run.epoch.tolist() == [0] * 11 + [1] * 11
    assert "resume-overlap" in {note.id for note in run.notes}


def test_what_optimizes_by_hand_is_recorded_and_said_not_to_be_provable(tmp_path):
    spikes = SpikeRecorder(tmp_path / "run")
    with pytest.warns(RuntimeWarning, match="optimizes by hand.*SpikeRecorder\\(loss_fn="):
        fit(tmp_path, [spikes], module=Net(by_hand=True), gradient_clip_val=None)
    assert len(read(spikes.path)) == 22


def test_what_optimizes_by_hand_can_be_replayed_through_a_loss_fn(tmp_path):
    def loss_fn(module, batch):
        return F.cross_entropy(module.net(batch[0]), batch[1])

    plain, _ = fit(tmp_path, module=Net(by_hand=True), gradient_clip_val=None)
    spikes = SpikeRecorder(tmp_path / "run", loss_fn=loss_fn, closely=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        watched, _ = fit(tmp_path, [spikes], module=Net(by_hand=True), gradient_clip_val=None)
    assert same(plain, watched)
    subject = Subject.of(spikes.recorder, read(spikes.path))
    with subject.kept():
        assert subject.replay(subject.window(0)).noise == 0.0


class Two(Net):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[0].parameters(), 0.1), torch.optim.SGD(self.net[4].parameters(), 0.1)]

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])


def test_two_optimizers_are_said_not_to_be_recorded(tmp_path):
    module = Two(by_hand=True)
    spikes = SpikeRecorder(tmp_path / "run")
    with pytest.warns(RuntimeWarning, match="has 2 optimizers; one is needed"):
        fit(tmp_path, [spikes], module=module, gradient_clip_val=None)
    assert spikes.path is None


class Boxes(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.detector = Detector((8, 16))

    def training_step(self, batch, batch_idx):
        loss = multibox_loss_averaged_twice(self.detector, batch)
        self.log("loss", loss)
        return {"loss": loss}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.004 * 32, momentum=0.9)  # three times that is the edge of stability


@pytest.mark.slow
def test_the_first_question_in_lightning(tmp_path):
    L.seed_everything(0, verbose=False)
    spikes = SpikeRecorder(tmp_path / "run")
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=12, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[spikes],
    )  # fmt: skip
    trainer.fit(Boxes(), DataLoader(scenes(8 * 32 + 2), batch_size=32, shuffle=True))
    made = spikes.diagnose(prove=True)
    assert (made.answer.cause, made.verdicts[0].outcome) == ("double-averaged-loss", "confirmed")


def by_fabric(path=None, precision="32-true"):
    """The weights, and the recorder where there is a path to record to."""
    fabric = L.Fabric(accelerator="cpu", devices=1, precision=precision)
    fabric.seed_everything(0, verbose=False)
    net = Net().net
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9))
    data = fabric.setup_dataloaders(loader())

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    rec = path and watch(model, optimizer, loss_fn=loss_fn, path=path)
    with rec or nullcontext():
        for _ in range(2):
            for batch in rec.batches(data) if rec else data:
                loss = loss_fn(model, batch)
                optimizer.zero_grad()
                fabric.backward(loss)
                fabric.clip_gradients(model, optimizer, max_norm=1.0)
                optimizer.step()
                if rec:
                    rec.step(loss)
    return net.state_dict(), rec


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(precision, tmp_path):
    plain, _ = by_fabric(precision=precision)
    watched, rec = by_fabric(tmp_path / "run", precision)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    run = read(rec.path)
    assert len(run) == 22
    assert sorted(i for ids in run.sample_ids[:11] for i in ids) == list(range(330))
    subject = Subject.of(rec, run)
    with subject.kept():
        assert subject.replay(subject.window(0)).noise == 0.0
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


@pytest.mark.slow
def test_a_compiled_module_is_recorded_and_replayed(tmp_path):
    plain, _ = fit(tmp_path, module=compiled())
    spikes = SpikeRecorder(tmp_path / "run", closely=True)
    watched, _ = fit(tmp_path, [spikes], module=compiled())
    assert same(plain, watched)
    run = read(spikes.path)
    assert len(run) == 22
    subject = Subject.of(spikes.recorder, run)
    with subject.kept():
        assert subject.replay(subject.window(0)).noise == 0.0


class Quiet(Net):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])  # the compiler stumbles over self.log


def compiled():
    L.seed_everything(0, verbose=False)
    return torch.compile(Quiet(), backend="eager")
