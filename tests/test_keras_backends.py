"""Keras on JAX and TensorFlow: what a callback sees of a step that is one compiled function. In fresh processes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import sys, warnings
import numpy as np, keras
from whyspike.integrations.keras import SpikeRecorder, training
from whyspike.errors import BadTraining
from whyspike.readers import read
backend = sys.argv[2]
assert keras.backend.backend() == backend

def net(per):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse", steps_per_execution=per)
    return model

draw = np.random.default_rng(0)
x, y = draw.normal(size=(68, 8)).astype("float32"), draw.normal(size=(68, 1)).astype("float32")

def fit(per, *callbacks):
    keras.utils.set_random_seed(1)
    model = net(per)
    model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model

plain = fit(1)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    spikes = SpikeRecorder(sys.argv[1])
    watched = fit(1, spikes)
assert any(f"on the {backend} backend a training step is one compiled function" in str(w.message) for w in said), said
assert all(np.array_equal(a, b) for a, b in zip(plain.get_weights(), watched.get_weights()))
run = read(spikes.path)
assert run.n_samples.tolist() == [16, 16, 16, 16, 4] * 3, run.n_samples
# The loss of a batch, once more: trained up to it by hand.
model = net(1)
keras.utils.set_random_seed(1)
model = net(1)
expected = []
for epoch in range(3):
    for k in range(0, 68, 16):
        expected.append(float(np.mean((np.asarray(model(x[k:k+16])) - y[k:k+16]) ** 2)))
        model.train_on_batch(x[k:k+16], y[k:k+16])
assert np.allclose(run.loss, expected, rtol=1e-3), (run.loss, expected)
assert spikes.diagnose(prove=True).answer.status in ("healthy", "unexplained", "cannot-say")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    several = SpikeRecorder(sys.argv[1] + "-5")
    fit(5, several)
assert any("with steps_per_execution=5 the mean of so many batches each" in str(w.message) for w in said), said
assert len(read(several.path)) == 3
try:
    training(net(1), [], epochs=1)
except BadTraining as error:
    assert "replays need KERAS_BACKEND=torch" in str(error)
print("seen")
"""


@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_losses_and_sizes_of_the_batches_are_seen_and_what_is_lost_is_said(backend, tmp_path):
    if importlib.util.find_spec("keras") is None or importlib.util.find_spec(backend) is None:
        pytest.skip(f"needs the extra keras, and {backend}")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), backend],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("seen\n")
