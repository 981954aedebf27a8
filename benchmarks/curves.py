"""How often the patterns of a curve are seen where there are none, and how small ones are found.

    python benchmarks/curves.py                # held-out seeds, writes docs/benchmarks/curves.md
    python benchmarks/curves.py --calibrate    # the seeds that the thresholds were chosen on

Looked for are a staircase at the epochs' begin (`whyspike.staircase`), the same noise again (`whyspike.echo`) and
the wave of sorted batches (`whyspike.megabatches`), in curves that have none of them, in real trainings, and in curves
with one of a known size. No log of the real world was used to choose a threshold.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from whyspike.echo import find_echo
from whyspike.megabatches import find_oscillation
from whyspike.staircase import find_staircase
from whyspike.stats import wilson
from whyspike.types import Note, Run

HELD_OUT = 1000  # seeds from here on are for scoring only
RUNS = 60  # of each kind
POWER_RUNS = 40
PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "curves.md"

# --------------------------------------------------------------------------- noises


def white(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def autoregressive(rng: np.random.Generator, n: int, rho: float) -> np.ndarray:
    from scipy.signal import lfilter

    return lfilter([np.sqrt(1 - rho**2)], [1, -rho], rng.standard_normal(n + 200))[200:]


def heavy(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_t(3, n) / 3**0.5


def skewed(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.exp(0.8 * rng.standard_normal(n)) - 1.4


NOISES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "white": white,
    "AR(.5)": partial(autoregressive, rho=0.5),
    "AR(.9)": partial(autoregressive, rho=0.9),
    "t3": heavy,
    "lognormal": skewed,
}

# --------------------------------------------------------------------------- curves


def run_of(y: np.ndarray, length: float, *, every: int = 1, lr: np.ndarray | None = None, epochs: bool = True) -> Run:
    """A run of log losses; with `every`, the means of as many steps, as a Trainer logs them."""
    done = np.arange(len(y))
    loss = np.exp(y)
    notes: tuple[Note, ...] = ()
    if every > 1:
        whole = len(y) // every * every
        loss = loss[:whole].reshape(-1, every).mean(axis=1)
        done = np.arange(every - 1, whole, every)
        notes = (Note(id="averaged-values", text=""),)
        lr = lr[done] if lr is not None else None
    epoch = np.floor(done / length).astype(np.int64)
    return Run(
        source="", reader="", step=done + 1, loss=loss, notes=notes, lr=lr,
        epoch=epoch if epochs else None, index=done - np.ceil(epoch * length).astype(np.int64) if epochs else None,
        steps_per_epoch=round(length) if epochs else None,
    )  # fmt: skip


def setting(rng: np.random.Generator) -> tuple[float, int, float]:
    """Steps of an epoch, epochs, scatter of the log loss."""
    return float(rng.uniform(60, 500)), int(rng.integers(2, 9)), float(np.exp(rng.uniform(np.log(0.01), np.log(0.3))))


def trend(rng: np.random.Generator, n: int) -> np.ndarray:
    """A log loss that falls: fast at first, then slowly."""
    t = np.arange(n)
    return rng.uniform(0.2, 3) * np.exp(-t / rng.uniform(20, 200)) - rng.uniform(0, 1) * t / n


def null_curves(seed: int) -> Iterator[tuple[str, Run]]:
    """Curves without a staircase, a repeat or a wave of sorted batches."""
    for name, noise in NOISES.items():
        rng = np.random.default_rng([seed, len(name), 1])
        length, epochs, sigma = setting(rng)
        n = int(length * epochs)
        y = trend(rng, n) + sigma * noise(rng, n)
        yield f"noise, {name}", run_of(y, length, lr=np.ones(n))
        yield f"noise, {name}, means of 10", run_of(y, length, every=10, lr=np.ones(n))
        yield f"noise, {name}, epochs and lr not known", run_of(y, length, epochs=False)
    rng = np.random.default_rng([seed, 2])
    length, epochs, sigma = setting(rng)
    length = float(int(length))
    n = int(length * epochs)
    t, rest = np.arange(n), sigma * white(rng, n)
    phase = t % length / length
    last = t % length == length - 1
    constant = np.ones(n)
    yield "last batch x 4", run_of(trend(rng, n) + rest + np.log(4) * last, length, lr=constant)
    yield "last batch twice as noisy", run_of(trend(rng, n) + rest * (1 + last), length, lr=constant)
    # A sawtooth on a slope as steep is a staircase: here the loss falls by less than a fifth of it in an epoch.
    teeth = rng.uniform(1, 4) * sigma
    slope = np.exp(-t / 30) - rng.uniform(0, 0.2) * teeth * t / length
    yield "sawtooth", run_of(slope + rest + teeth * phase, length, lr=constant)
    yield "sawtooth upside down", run_of(slope + rest - teeth * phase, length, lr=constant)
    period = rng.uniform(20, 400)
    yield "cyclic", run_of(trend(rng, n) + rest + 2 * sigma * np.sin(2 * np.pi * t / period), length, lr=constant)
    cut = 0.5 ** (t // length)
    yield "lr halved every epoch", run_of(-0.2 * (t // length) + rest, length, lr=cut)
    yield "lr halved every epoch, not logged", run_of(-0.2 * (t // length) + rest, length)
    raw = np.exp(trend(rng, n) + rest)
    split = np.split(raw, range(int(length), n, int(length)))
    means = np.concatenate([np.cumsum(e) / np.arange(1, len(e) + 1) for e in split])
    yield "running mean since the epoch's begin", run_of(np.log(means), length, lr=constant)


def digits(seed: int) -> Iterator[tuple[str, Run]]:
    """Real trainings on scikit-learn's digits, shuffled."""
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.utils.data import DataLoader

    from whyspike.cases._data import digits as data

    torch.set_num_threads(1)
    for name, lr, batch_size in (("SGD", 0.05, 16), ("SGD", 0.05, 32), ("Adam", 2e-3, 16)):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=lr)
        draw = torch.Generator().manual_seed(seed)
        loader = DataLoader(data(1797), batch_size=batch_size, shuffle=True, generator=draw)
        losses = []
        for _ in range(4):
            for pixels, classes in loader:
                loss = F.cross_entropy(model(pixels), classes)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        y, constant = np.log(np.array(losses)), np.ones(len(losses))
        yield f"digits, {name}, batches of {batch_size}", run_of(y, len(loader), lr=constant)
        yield f"digits, {name}, batches of {batch_size}, means of 5", run_of(y, len(loader), every=5, lr=constant)


def staircase(seed: int, step: float, points: int) -> Run:
    """Three epochs of `points` logged values; every boundary a step down, in units of the scatter of a value."""
    rng = np.random.default_rng([seed, 3])
    length, n, sigma = float(points), 3 * points, 0.05
    t = np.arange(n)
    stairs = t // length - 0.1 * (t % length) / length
    return run_of(0.3 * np.exp(-t / 30) + sigma * (white(rng, n) - step * stairs), length, lr=np.ones(n))


def repeated(seed: int, r: float, passes: float, points: int) -> Run:
    """Passes over the same data in the same order: the share r of the noise's variance comes again."""
    rng = np.random.default_rng([seed, 4])
    n = int(passes * points)
    own, common = white(rng, n), np.resize(white(rng, points), n)
    y = trend(rng, n) + 0.05 * (np.sqrt(r) * common + np.sqrt(1 - r) * own)
    return run_of(y, 1e9, epochs=False)


def ramp(seed: int, share: float, every: int) -> Run:
    """Three epochs of 406.3 steps, sorted in mega-batches of 50: the wave's share of the variance of a single step."""
    rng = np.random.default_rng([seed, 5])
    length = 406.3125
    n = int(3 * length)
    t = np.arange(n)
    inside = t - np.ceil(np.floor(t / length) * length)
    wave = ((inside % 50) / 50 - 0.5) * 12**0.5
    y = 0.3 * np.exp(-t / 30) + 0.05 * (np.sqrt(share) * wave + np.sqrt(1 - share) * white(rng, n))
    return run_of(y, length, every=every, lr=np.ones(n))


FINDERS: dict[str, Callable[[Run], bool]] = {
    "staircase": lambda run: find_staircase(run) is not None,
    "echo": lambda run: (found := find_echo(run)) is not None and found.whole,
    "wave": lambda run: find_oscillation(run) is not None,
}

POWER: tuple[tuple[str, str, tuple[float, ...], Callable[[int, float], Run]], ...] = (
    ("3 epochs of 400 values, step / scatter", "staircase", (0.5, 1, 2, 4), partial(staircase, points=400)),
    ("3 epochs of 60 values", "staircase", (1, 2, 4, 8), partial(staircase, points=60)),
    ("2.5 passes of 1,000, share of noise", "echo", (0.3, 0.4, 0.6), partial(repeated, passes=2.5, points=1000)),
    ("4 passes of 90 steps", "echo", (0.3, 0.4, 0.6, 0.8), partial(repeated, passes=4, points=90)),
    ("wave of 50 steps, every step logged, share of the noise", "wave", (0.2, 0.4, 0.6), partial(ramp, every=1)),
    ("wave of 50 steps, means of 10", "wave", (0.05, 0.1, 0.2, 0.4), partial(ramp, every=10)),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrate", action="store_true", help="use the seeds that the thresholds were chosen on")
    arguments = parser.parse_args()
    first = 0 if arguments.calibrate else HELD_OUT
    started = time.time()
    lines = ["| curve | runs | staircase | same noise again | wave of sorted batches |", "|---|---|---|---|---|"]
    counts: dict[str, list[int]] = {}
    for seed in range(first, first + RUNS):
        curves = [*null_curves(seed), *(digits(seed) if seed < first + 20 else ())]
        for name, run in curves:
            row = counts.setdefault(name, [0, 0, 0, 0])
            row[0] += 1
            for k, found in enumerate(FINDERS.values(), 1):
                row[k] += found(run)
    for name, (n, *found) in counts.items():
        lines.append(f"| {name} | {n} | {' | '.join(map(str, found))} |")
    total = [sum(row[k] for row in counts.values()) for k in range(4)]
    upper = [f"{k} (at most {100 * wilson(k, total[0])[1]:.1f} %)" for k in total[1:]]
    lines.append(f"| all | {total[0]} | {' | '.join(upper)} |")
    power = ["| what | size | found of 40 |", "|---|---|---|"]
    for name, finder, sizes, make in POWER:
        for size in sizes:
            hits = 0
            for seed in range(first, first + POWER_RUNS):
                hits += FINDERS[finder](make(seed, size))
            power.append(f"| {name} | {size} | {hits} |")
    text = "\n".join(["## Seen where there is none", "", *lines, "", "## Found where there is one", "", *power, ""])
    sys.stdout.write(f"{text}\n{time.time() - started:.0f} s\n")
    if not arguments.calibrate:
        PAGE.write_text(f"{HEAD}{text}", encoding="utf-8")


HEAD = f"""# The patterns of a curve, scored

`python benchmarks/curves.py` writes this page from seeds {HELD_OUT} and later, which were used for nothing else;
`--calibrate` uses those from 0, on which the thresholds of `whyspike.staircase`, `whyspike.echo` and
`whyspike.megabatches` were chosen. Scatter of the log loss .01 to .3, 2 to 8 epochs of 60 to 500 steps.

"""

if __name__ == "__main__":
    main()
