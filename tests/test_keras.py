"""Keras 3 on the torch backend: what `model.fit` is to the recorder, and Q1 in Keras' own words."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ["KERAS_BACKEND"] = "torch"  # before anybody imports keras
keras = pytest.importorskip("keras", reason="needs the extra keras")
import torch  # noqa: E402
from keras import ops  # noqa: E402

from whyspike.cases.double_averaged_loss import scenes  # noqa: E402
from whyspike.exponent import measure  # noqa: E402
from whyspike.integrations._keras_seams import Network, compiled_loss, optimizer_of  # noqa: E402
from whyspike.integrations.keras import SpikeRecorder, training  # noqa: E402
from whyspike.readers import read  # noqa: E402
from whyspike.replay import Subject  # noqa: E402

if keras.backend.backend() != "torch":
    pytest.skip("keras was imported with another backend before", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("one_thread")

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


def arrays(n):
    images, classes, offsets = (t.numpy() for t in scenes(n).tensors)
    return images.transpose(0, 2, 3, 1), np.concatenate([classes[..., None], offsets], -1).astype("float32")


def per_cell(y, p):
    """Cross-entropy and smooth-L1 of every anchor (B, 16), and the number of boxes in the batch."""
    classes = ops.cast(y[..., 0], "int32")
    positive = ops.cast(classes > 0, "float32")
    scores = keras.losses.sparse_categorical_crossentropy(classes, p[..., :11], from_logits=True)
    d = ops.abs(p[..., 11:] - y[..., 1:])
    place = ops.sum(ops.where(d < 1, 0.5 * d * d, d - 0.5), -1)
    return scores + place * positive, ops.maximum(ops.sum(positive), 1.0)


def scalar(y, p):
    cells, boxes = per_cell(y, p)
    return ops.sum(cells) / boxes


def vector(y, p):  # as ssd_keras does it: a sample's sum over the boxes of the batch
    cells, boxes = per_cell(y, p)
    return ops.sum(cells, -1) / boxes


def of_anchors(y, p):
    cells, boxes = per_cell(y, p)
    return cells / boxes


class Summed(keras.losses.Loss):
    def call(self, y, p):
        return vector(y, p)


def detector(loss, lr=0.0125):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            keras.layers.Conv2D(8, 4, strides=4),
            keras.layers.LeakyReLU(0.1),
            keras.layers.Conv2D(16, 4, strides=2, padding="same"),
            keras.layers.LeakyReLU(0.1),
            keras.layers.Conv2D(13, 1),
            keras.layers.Reshape((16, 13)),
        ]
    )
    model.compile(optimizer=keras.optimizers.SGD(lr, momentum=0.9), loss=loss)
    return model


@pytest.mark.parametrize(
    ("words", "loss", "alpha"),
    [
        ("a vector already divided by the boxes", vector, -1.0),
        ("a map already divided by the boxes", of_anchors, -1.0),
        ("a scalar passes through", scalar, 0.0),
        ("the cleanest cure", Summed(reduction="sum"), 0.0),
        ("times the actual batch size", lambda y, p: vector(y, p) * ops.cast(ops.shape(y)[0], "float32"), 0.0),
        ("times the nominal batch size cures nothing", lambda y, p: vector(y, p) * 32.0, -1.0),
    ],
)
def test_the_exponent_of_a_compiled_loss(words, loss, alpha):
    x, y = arrays(64)
    model = detector(loss)
    found = measure(Network(model), compiled_loss, (torch.tensor(x[:32]), torch.tensor(y[:32])))
    assert found.alpha == pytest.approx(alpha, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "lr"), [(vector, 32 * 0.0125), (of_anchors, 32 * 16 * 0.0125)])
def test_a_loss_that_keras_averages_again_is_confirmed(loss, lr, tmp_path):
    x, y = arrays(8 * 32 + 2)
    spikes = SpikeRecorder(tmp_path / "run")
    detector(loss, lr).fit(x, y, batch_size=32, epochs=12, verbose=0, callbacks=[spikes])
    made = spikes.diagnose(prove=True)
    assert (made.answer.cause, made.verdicts[0].outcome) == ("double-averaged-loss", "confirmed")
    codes = [c.code["keras"] for c in made.verdicts[0].cures if "keras" in c.code]
    for words in ('reduction="sum"', "ops.shape(", "drop_remainder=True", "global_clipnorm="):
        assert any(words in code for code in codes)


@pytest.mark.slow
def test_a_scalar_loss_is_healthy(tmp_path):
    x, y = arrays(8 * 32 + 2)
    spikes = SpikeRecorder(tmp_path / "run")
    detector(scalar, 0.0085).fit(x, y, batch_size=32, epochs=12, verbose=0, callbacks=[spikes])
    made = spikes.diagnose(prove=True)
    assert made.answer.status == "healthy"
    assert "double-averaged-loss" not in {v.cause for v in made.verdicts if v.outcome in ("confirmed", "likely")}


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
