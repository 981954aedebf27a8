"""The live probe of a script: on a copy of its network, or not at all."""

from __future__ import annotations

import argparse

import pytest
import torch
from test_scripts import loop, python, same_weights, under, written
from torch import nn

from whyspike.readers import read
from whyspike.scriptprobe import reaches_out

SEEN: list[float] = []
WIDTH, OPTIONS = 4, {"scale": 2.0}
ARGS = argparse.Namespace(scale=2.0)
GENERATOR = torch.Generator()


def scaled(x):
    return x * OPTIONS["scale"] + ARGS.scale


def noted(x):
    SEEN.append(float(x.mean()))
    return x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.calls = 0


class Counts(Net):
    def forward(self, x):
        self.calls += 1
        return self.inner(scaled(x)).view(len(x), WIDTH) + torch.log(torch.tensor(2.0))


class Notes(Net):
    def forward(self, x):
        return noted(self.inner(x))


class Prints(Net):
    def forward(self, x):
        if self.training:
            print("forward")
        return self.inner(x)


class Draws(Net):
    def forward(self, x):
        return self.inner(x) + torch.randn(x.shape, generator=GENERATOR)


class ByMethod(Net):
    def forward(self, x):
        return self.helped(x)

    def helped(self, x):
        global SEEN  # noqa: PLW0603
        SEEN = [1.0]
        return self.inner(x)


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (Counts, None),
        (Notes, "Notes.forward may change SEEN"),
        (Prints, "Prints.forward calls print()"),
        (Draws, "Draws.forward uses GENERATOR, which is not part of it"),
        (ByMethod, "ByMethod.forward sets SEEN"),
    ],
)
def test_code_that_reaches_out_of_the_network_is_found(net, says):
    assert reaches_out(nn.Sequential(net(), nn.ReLU())) == says


def test_hooks_are_the_scripts_own():
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda *a: None)
    assert reaches_out(model) == "Linear has forward hooks"
    assert reaches_out(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))) is None
    assert reaches_out(nn.TransformerEncoderLayer(8, 2)) is None


COUNTING = """
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = nn.Linear(4, 4), 0
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            self.calls += 1
            SAYS
            return self.norm(self.inner(x)) * (1 + 0.001 * self.calls)

    def main(epochs):
"""
PRINTS = "print('call', self.calls) if self.calls % 10 == 0 else None"


@pytest.mark.parametrize("says", [False, True], ids=["counts", "prints"])
def test_a_network_that_counts_its_calls_is_trained_as_without_a_probe(says, tmp_path):
    text = loop().replace("\n    def main(epochs):\n", COUNTING.replace("SAYS", PRINTS if says else "pass"), 1)
    script = written(tmp_path, text.replace("nn.Linear(4, 8)", "Counting(), nn.Linear(4, 8)"))
    plain = python(tmp_path / "plain", script, "8")
    ours = under(tmp_path / "ours", "--no-prove", "--folder", "record", script, "8")
    assert (ours.stdout, ours.returncode) == (plain.stdout, 7), ours.stderr
    assert same_weights(tmp_path / "plain" / "model.pt", tmp_path / "ours" / "model.pt")
    run = read(tmp_path / "ours" / "record")
    off = [m.data["reason"] for m in run.marked("probe-off")]
    if says:
        assert off == ["Counting.forward calls print()"]
        assert "probe" not in run.signals
    else:
        assert off == []
        assert len(run.signals["probe"].step) >= 2
