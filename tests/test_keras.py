"""Keras 3 on the torch backend: what `model.fit` is to the recorder, and Q1 in Keras' own words."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from conftest import ROOT

os.environ["KERAS_BACKEND"] = "torch"  # before anybody imports keras
keras = pytest.importorskip("keras", reason="needs the extra keras")
import torch  # noqa: E402

import whyspike  # noqa: E402
from whyspike.exponent import measure  # noqa: E402
from whyspike.integrations._keras_seams import Network, compiled_loss, optimizer_of  # noqa: E402
from whyspike.integrations.keras import SpikeRecorder, training  # noqa: E402
from whyspike.readers import read  # noqa: E402
from whyspike.replay import Subject  # noqa: E402

if keras.backend.backend() != "torch":
    pytest.skip("keras was imported with another backend before", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("one_thread")

sys.path.append(str(ROOT / "examples"))
import keras_detector as example  # noqa: E402

CrossEntropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def digits(n=330):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x[:n] / 16).astype("float32"), y[:n]


def net(optimizer=None, cls=keras.Model, **compiled):
    """Dropout and BatchNorm, so that generators and moving averages must be right, too."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((64,))
    for layer in (
        keras.layers.Dense(16, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(10),
    ):
        x = layer(x)
    model = cls(inputs, x)
    model.compile(optimizer=optimizer or keras.optimizers.Adam(1e-2), loss=CrossEntropy, **compiled)
    return model


def fit(model, callbacks=(), **kw):
    x, y = digits()
    keras.utils.set_random_seed(1)
    model.fit(x, y, batch_size=32, epochs=2, verbose=0, callbacks=list(callbacks), **kw)
    return model


def same_weights(a, b):
    return all(np.array_equal(p, q) for p, q in zip(a.get_weights(), b.get_weights(), strict=True))


OPTIMIZERS = {
    "adam, a schedule": lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(1e-2, 5, 0.9)),
    "sgd, momentum and clipping": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, global_clipnorm=1.0),
    "rmsprop, averaged weights": lambda: keras.optimizers.RMSprop(1e-3, use_ema=True),
    "adamw, accumulated": lambda: keras.optimizers.AdamW(1e-2, gradient_accumulation_steps=2),
    "loss scaling": lambda: keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(0.05), initial_scale=1024.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fit_is_bitwise_the_same_and_its_replay_is_bitwise_the_record(name, tmp_path):
    make = OPTIMIZERS[name]
    plain = fit(net(make()), validation_split=0.1)
    spikes = SpikeRecorder(tmp_path / "run", closely=True)
    watched = fit(net(make()), [spikes], validation_split=0.1)
    assert same_weights(plain, watched)
    run = read(spikes.path)
    assert len(run) == (10 if "accumulated" in name else 20)
    subject = Subject.of(spikes.recorder, run)
    noise = []
    with subject.kept():
        for path in run.capsules:
            steps = subject.capsule(path).steps
            noise.append(subject.replay(subject.window(steps[0].step)).noise)
    assert noise
    assert max(noise) == 0.0
    assert same_weights(plain, watched)
    assert "apply" not in vars(watched.optimizer)
    assert "train_step" not in vars(watched)


def test_the_record_holds_the_loss_of_every_batch_and_which_samples_it_had(tmp_path):
    x, y = digits()
    spikes = SpikeRecorder(tmp_path / "run")
    model = net(keras.optimizers.SGD(0.0))  # nothing moves, so that every batch can be evaluated afterwards
    model.layers[-2].rate = 0.0
    fit(model, [spikes])
    run = read(spikes.path)
    assert run.facts["dataset_size"] == 330
    assert run.facts["shuffle"] is True
    assert run.n_samples.tolist() == ([32] * 10 + [10]) * 2
    network = Network(model)
    for k in (0, 10, 21):
        rows = run.sample_ids[k]
        with torch.no_grad():
            expected = float(compiled_loss(network, (torch.tensor(x[rows]), torch.tensor(y[rows]))))
        assert run.loss[k] == pytest.approx(expected, rel=1e-5)
    # What Keras logs is the mean since the epoch began, weighted by samples: the two are side by side in the record.
    logged = run.signals["log/loss"]
    first = slice(0, 11)
    running = np.cumsum(run.loss[first] * run.n_samples[first]) / np.cumsum(run.n_samples[first])
    assert logged.value[first] == pytest.approx(running, rel=1e-5)


# --------------------------------------------------------------------------- Q1


ALPHA = {
    "a scalar": 0.0,
    "(B,), divided by the boxes": -1.0,
    "(B, anchors), divided by the boxes": -1.0,
    '(B,), Loss(reduction="sum")': 0.0,
    "(B,), times ops.shape(y)[0]": 0.0,
    "(B,), times the nominal batch size": -1.0,
}
SICK = [form for form in ALPHA if form.endswith("divided by the boxes")]


@pytest.mark.parametrize("form", ALPHA)
def test_the_exponent_of_a_compiled_loss(form):
    assert list(ALPHA) == list(example.LOSSES)
    x, y = example.data(64)
    network = Network(example.detector(example.LOSSES[form][0](), 0.01))
    assert measure(network, compiled_loss, (x[:32], y[:32])).alpha == pytest.approx(ALPHA[form], abs=0.02)


def watched(form, path, **optimizer):
    """Train the detector by `fit`, recorded."""
    loss, factor = example.LOSSES[form]
    lr = factor * (example.CALM if form == "a scalar" else example.LR)
    spikes = SpikeRecorder(path)
    example.detector(loss(), lr, **optimizer).fit(
        example.loader(), epochs=example.EPOCHS, shuffle=False, verbose=0, callbacks=[spikes]
    )
    return spikes


def last_over_level(run, name=None):
    """The loss at the last batches over that of the eight steps before, in the median over epochs from the third."""
    value = run.loss if name is None else run.signals[name].value
    lasts = np.flatnonzero(run.n_samples == example.LEFT)[2:]
    return float(np.median([value[k] / np.median(value[k - 8 : k]) for k in lasts]))


@pytest.mark.slow
@pytest.mark.parametrize("form", SICK)
def test_a_loss_that_keras_averages_again_is_confirmed(form, tmp_path):
    spikes = watched(form, tmp_path / "run")
    made = spikes.diagnose(prove=True)
    assert (made.answer.cause, made.verdicts[0].outcome) == ("double-averaged-loss", "confirmed")
    assert made.verdicts[0].evidence[0].observed.startswith("-1.0")
    codes = [c.code["keras"] for c in made.verdicts[0].cures if "keras" in c.code]
    for words in ('reduction="sum"', "ops.shape(", "drop_remainder=True", "global_clipnorm=", "clipnorm="):
        assert any(words in code for code in codes)
    # The number that Keras plots, a running mean that begins anew with every epoch, does not show the spike at its
    # step; it is beside the losses of the batches in the record, and that it is such a mean is said.
    run = read(spikes.path)
    assert last_over_level(run) > 8
    assert last_over_level(run, "log/loss") < 3
    assert {v.cause: v.outcome for v in made.verdicts}["running-mean-reset"] == "confirmed"


@pytest.mark.slow
def test_a_scalar_loss_is_healthy(tmp_path):
    made = watched("a scalar", tmp_path / "run").diagnose(prove=True)
    assert made.answer.status == "healthy"
    assert "double-averaged-loss" not in {v.cause for v in made.verdicts if v.outcome in ("confirmed", "likely")}


@pytest.mark.slow
def test_cures_in_keras_own_words(tmp_path):
    factor = {form: last_over_level(read(watched(form, tmp_path / str(k)).path)) for k, form in enumerate(ALPHA)}
    sick = factor["(B,), divided by the boxes"]
    assert sick > 8
    assert factor['(B,), Loss(reduction="sum")'] < 3
    assert factor["(B,), times ops.shape(y)[0]"] < 3
    assert factor["(B,), times the nominal batch size"] == pytest.approx(sick, rel=1e-3)  # the very same training
    for name in ("clipnorm", "global_clipnorm"):  # they protect the weights; what is plotted stays
        run = read(watched("(B,), divided by the boxes", tmp_path / name, **{name: 0.05}).path)
        assert last_over_level(run) > 8


@pytest.mark.slow
def test_cures_are_verified_from_scratch():
    made = whyspike.prove(example.training)
    first = made.verdicts[0]
    assert (first.cause, first.outcome) == ("double-averaged-loss", "confirmed")
    assert [c.verified for c in first.cures] == [True, True, True, True, False]
    assert "nominal" in first.cures[-1].words


# --------------------------------------------------------------------------- what cannot be looked into


def test_a_compiled_step_gives_its_batch_losses_and_says_what_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **kw: function)  # no compiler is needed to see it
    spikes = SpikeRecorder(tmp_path / "run")
    with pytest.warns(RuntimeWarning, match="jit_compile=True.* only the loss of every batch is recorded"):
        fit(net(keras.optimizers.SGD(0.1), jit_compile=True), [spikes])
    seen = read(spikes.path)
    full = SpikeRecorder(tmp_path / "full")
    fit(net(keras.optimizers.SGD(0.1)), [full])
    assert seen.n_samples.tolist() == ([32] * 10 + [10]) * 2
    assert seen.loss == pytest.approx(read(full.path).loss, rel=1e-4)
    assert spikes.diagnose().answer.status in ("healthy", "unexplained", "cannot-say")


def test_several_steps_at_once_are_refused_by_keras_itself_and_leave_nothing_behind(tmp_path):
    model = net(steps_per_execution=4)
    spikes = SpikeRecorder(tmp_path / "run")
    with pytest.raises(ValueError, match="`steps_per_execution` must be 1 with the PyTorch backend"):
        fit(model, [spikes])
    model.compile(optimizer=model.optimizer, loss=CrossEntropy)  # the same model, as it is to be
    fit(model, [again := SpikeRecorder(tmp_path / "again")])
    assert len(read(again.path)) == 22
    assert "train_step" not in vars(model)


class Own(keras.Model):
    """A step of its own that never calls compute_loss."""

    def train_step(self, data):
        x, y = data
        loss = CrossEntropy(y, self(x, training=True))
        self.zero_grad()
        loss.backward()
        weights = self.trainable_weights
        with torch.no_grad():
            self.optimizer.apply([v.value.grad for v in weights], weights)
        self._loss_tracker.update_state(loss, sample_weight=len(x))
        return {"loss": self._loss_tracker.result()}


class Through(keras.Model):
    """A step of its own as Keras' guides write it."""

    def train_step(self, data):
        x, y = data
        loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        self.zero_grad()
        loss.backward()
        weights = self.trainable_weights
        with torch.no_grad():
            self.optimizer.apply([v.value.grad for v in weights], weights)
        return {"loss": loss.detach()}


def test_a_train_step_of_ones_own(tmp_path):
    with pytest.warns(RuntimeWarning, match="Own.train_step does not go through compute_loss"):
        fit(net(cls=Own), [SpikeRecorder(tmp_path / "own")])
    spikes = SpikeRecorder(tmp_path / "through")
    fit(net(cls=Through), [spikes])
    assert len(read(spikes.path)) == 22


def test_a_model_as_a_training():
    x, y = digits(96)
    data = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    made = training(net(), torch.utils.data.DataLoader(data, batch_size=32), epochs=1)
    assert type(made.optimizer).__name__ == "Adam"
    assert made.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    state = next(iter(optimizer_of(net()).state.values()))
    assert {"step", "exp_avg", "exp_avg_sq"} <= set(state)
