"""Calibrate and score the event detector on trainings whose faults are known.

    python benchmarks/detectors.py                # held-out seeds, writes docs/benchmarks/detectors.md
    python benchmarks/detectors.py --calibrate    # the seeds that thresholds were chosen on

Healthy series are real small trainings (MLPs on scikit-learn's digits and on regressions) and synthetic noise;
faulty ones have known faults injected. The thresholds of `whyspike.detect` were chosen on the seeds below
`HELD_OUT` only. Series are kept in the system's temporary folder and made again when missing (about four minutes).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from whyspike.detect import Detector
from whyspike.stats import poisson_upper, wilson

HELD_OUT = 7000  # seeds from here on are for scoring only
CALIBRATION_SEEDS = (0, 1, 2, 3, 4, 5)
SCORING_SEEDS = (HELD_OUT, HELD_OUT + 1, HELD_OUT + 2, HELD_OUT + 3)
STEPS = 2_000
VISIBLE = 1.5  # a fault counts when the loss or the probe peaks, within 5 steps, at this factor of its median before
#               and of the peak that the same steps have without the fault
HIT_WITHIN = 25  # steps from the fault to the onset of the event that finds it
AFTERMATH = 100  # events this soon after a fault are neither hits nor false
NETWORK = 512  # samples on which it is measured whether an event of a healthy training is a real one
CACHE = Path(tempfile.gettempdir()) / "whyspike-benchmark-detectors-4"


@dataclass(frozen=True)
class Setup:
    """One kind of training. `remainder` is the size of the last batch of an epoch, 0 when it is full."""

    name: str
    optimizer: str
    lr: float
    batch_size: int
    task: str = "teacher"
    label_noise: float = 0.0
    schedule: str = "constant"
    remainder: int = 0


SETUPS = (
    Setup("sgd-32", "sgd", 0.02, 32),
    Setup("sgd-8", "sgd", 0.01, 8),
    Setup("adam-32", "adam", 1e-3, 32),
    Setup("adam-8", "adam", 1e-3, 8),
    Setup("sgd-32-label-noise", "sgd", 0.02, 32, label_noise=0.2),
    Setup("adam-8-label-noise", "adam", 1e-3, 8, label_noise=0.2),
    Setup("sgd-32-cosine", "sgd", 0.02, 32, schedule="cosine"),
    Setup("adam-32-warm-restarts", "adam", 2e-3, 32, label_noise=0.1, schedule="restarts"),
    Setup("sgd-32-step-decay", "sgd", 0.02, 32, label_noise=0.1, schedule="step"),
    Setup("sgd-32-short-last", "sgd", 0.02, 32, remainder=2),
    Setup("adam-8-short-last", "adam", 1e-3, 8, label_noise=0.1, remainder=3),
    Setup("sgd-32-short-last-noise", "sgd", 0.02, 32, label_noise=0.2, remainder=4),
    Setup("digits-sgd-32", "sgd", 0.02, 32, task="digits"),  # interpolates: log loss spreads over decades
    Setup("digits-adam-8-noise", "adam", 1e-3, 8, task="digits", label_noise=0.1, remainder=3),
    Setup("regression-16", "sgd", 0.003, 16, task="regression"),
    Setup("regression-heavy-16", "adam", 1e-3, 16, task="heavy", remainder=5),
)
FAULTY = tuple(
    s
    for s in SETUPS
    if s.name
    in ("sgd-32", "adam-32", "adam-8-label-noise", "sgd-32-short-last-noise", "digits-adam-8-noise", "regression-16")
)
FAULTS = ("bad-inputs", "shuffled-labels", "lr-spike", "loss-x8", "weight-perturbation", "short-batch")
SYNTHETIC = ("gaussian", "t3", "lognormal", "ar", "power-law", "t3-falling", "negative")


@dataclass(frozen=True)
class Recorded:
    """A series with what is known about it."""

    name: str
    loss: np.ndarray  # [T]
    probe: np.ndarray  # [T], nan where there is none
    grad_norm: np.ndarray  # [T], nan where there is none
    n_samples: np.ndarray  # [T]
    network: np.ndarray  # [T], loss on 512 samples of the healthy trainings, nan elsewhere; no detector sees it
    batch_size: int
    faults: tuple[tuple[int, str, bool], ...]  # step, kind, whether it is visible


# --------------------------------------------------------------------------- making the series


def dataset(task: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if task == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        order = rng.permutation(len(x))
        return (x[order] / 16.0).astype(np.float32), y[order]
    x = rng.standard_normal((1024, 14)).astype(np.float32)
    if task == "teacher":
        logits = np.tanh(x @ rng.standard_normal((14, 30))) @ rng.standard_normal((30, 4))
        return x, logits.argmax(1)
    hidden = np.tanh(x @ rng.standard_normal((14, 20)) / 3) @ rng.standard_normal((20, 1))
    noise = rng.standard_t(3, (1024, 1)) if task == "heavy" else rng.standard_normal((1024, 1))
    return x, (hidden + 0.3 * noise).astype(np.float32)


def train(setup: Setup, seed: int, faults: dict[int, str]) -> Recorded:
    """Train for real, with the faults injected at their steps."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    rng = np.random.default_rng([seed, len(setup.name), sum(map(ord, setup.name)), len(faults)])
    torch.manual_seed(int(rng.integers(2**31)))
    x, y = dataset(setup.task, rng)
    classes = setup.task in ("digits", "teacher")
    size, b = len(x), setup.batch_size
    size = size - size % b - (b if setup.remainder else 0) + setup.remainder
    x, y = x[:size], y[:size].copy()
    if setup.label_noise and classes:
        wrong = rng.random(size) < setup.label_noise
        y[wrong] = rng.integers(0, y.max() + 1, wrong.sum())
    xt, yt = torch.from_numpy(x), torch.from_numpy(y)
    outputs = int(y.max()) + 1 if classes else 1
    layers = nn.Linear(x.shape[1], 100), nn.ReLU(), nn.Linear(100, 40), nn.ReLU(), nn.Linear(40, outputs)
    model = nn.Sequential(*layers)
    params = list(model.parameters())
    criterion: nn.Module = nn.CrossEntropyLoss() if classes else nn.MSELoss()
    momentum = {"momentum": 0.9} if setup.optimizer == "sgd" else {}
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[setup.optimizer](params, lr=setup.lr, **momentum)
    probe_rows = torch.from_numpy(rng.choice(size, 32, replace=False))
    network_rows = torch.from_numpy(np.random.default_rng(seed).permutation(size)[:NETWORK])
    schedule = {
        "constant": lambda step: 1.0,
        "cosine": lambda step: 0.5 * (1 + math.cos(math.pi * step / STEPS)),
        "restarts": lambda step: 0.5 * (1 + math.cos(math.pi * (step % 500) / 500)),
        "step": lambda step: 0.1 ** (step // 700),
    }[setup.schedule]
    batches = list(epochs(size, b, rng))

    def one(step: int, fault: str | None) -> tuple[float, float, float, int, float]:
        rows = torch.from_numpy(batches[step])
        if fault == "short-batch":
            rows = rows[: max(1, b // 8)]
        bx, by = xt[rows], yt[rows]
        if fault == "bad-inputs":
            bx = bx.clone()
            bx[:4] *= 15
        if fault == "shuffled-labels":
            by = by.roll(1, 0)
        optimizer.param_groups[0]["lr"] = setup.lr * schedule(step) * (30 if fault == "lr-spike" else 1)
        loss = criterion(model(bx), by)
        if fault == "loss-x8":
            loss = loss * 8
        if fault == "short-batch":
            loss = loss * (b / len(rows))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([p.grad for p in params])))
        optimizer.step()
        with torch.no_grad():
            if fault == "weight-perturbation":
                for p in params:
                    p.add_(torch.randn_like(p) * (p.std(correction=0) * 0.4))
            probe = criterion(model(xt[probe_rows]), yt[probe_rows])
            network = math.nan if faults else criterion(model(xt[network_rows]), yt[network_rows]).item()
        return loss.item(), probe.item(), norm.item(), len(rows), network

    rows: list[tuple[float, float, float, int, float]] = []
    twins: dict[int, np.ndarray] = {}  # the six steps from a fault on, as they are without it
    for step in range(STEPS):
        if step in faults:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            twins[step] = np.array([one(s, None)[:2] for s in range(step, min(step + 6, STEPS))])
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        rows.append(one(step, faults.get(step)))
    loss, probe, norm, n, network = (np.array(c) for c in zip(*rows, strict=True))
    marks = []
    for step, kind in sorted(faults.items()):
        seen = False
        for k, values in enumerate((loss, probe)):
            peak = values[step : step + 6].max()
            seen |= peak >= VISIBLE * max(np.median(values[max(0, step - 64) : step]), twins[step][:, k].max())
        marks.append((step, kind, bool(seen)))
    return Recorded(setup.name, loss, probe, norm, n, network, b, tuple(marks))


def epochs(size: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The batches of `STEPS` steps, shuffled anew every epoch."""
    count = 0
    while count < STEPS:
        order = rng.permutation(size)
        for at in range(0, size, batch_size):
            if count < STEPS:
                yield order[at : at + batch_size]
            count += 1


def synthetic(kind: str, seed: int) -> Recorded:
    rng = np.random.default_rng([seed, 77, sum(map(ord, kind))])
    t = np.arange(2 * STEPS)
    falling = 0.5 + 2.0 * (1 + t / 50) ** -0.5
    if kind == "gaussian":
        loss = falling * (1 + 0.08 * rng.standard_normal(len(t)))
    elif kind == "t3":
        loss = 1.0 + 0.06 * np.abs(rng.standard_t(3, len(t)))
    elif kind == "lognormal":
        loss = rng.lognormal(0, 1, (len(t), 8)).mean(1)
    elif kind == "ar":
        e = rng.standard_normal(len(t)) * 0.05
        for i in range(1, len(e)):
            e[i] += 0.95 * e[i - 1]
        loss = falling * np.exp(e)
    elif kind == "power-law":
        loss = 10.0 * (1 + t) ** -1.2 * np.exp(0.1 * rng.standard_normal(len(t)))
    elif kind == "t3-falling":
        loss = np.maximum(falling + 0.1 * rng.standard_t(3, len(t)), falling / 2)
    else:  # a log-density that passes through zero
        loss = 3.0 * falling - 4.0 + 0.3 * rng.standard_normal(len(t))
    none = np.full(len(t), np.nan)
    return Recorded(f"synthetic-{kind}", loss, none, none, np.full(len(t), 32), none, 32, ())


def faults_for(setup: Setup, seed: int) -> dict[int, str]:
    """Each fault once, in random order, 250 steps apart and more, the first one early."""
    rng = np.random.default_rng([seed, 5, sum(map(ord, setup.name))])
    steps = 60 + 300 * np.arange(len(FAULTS)) + rng.integers(0, 100, len(FAULTS))
    return dict(zip(steps.tolist(), rng.permutation(FAULTS).tolist(), strict=True))


def series(seeds: tuple[int, ...], *, quiet: bool = False) -> tuple[list[Recorded], list[Recorded]]:
    """Healthy and faulty series of these seeds, from the cache where they are there."""
    CACHE.mkdir(exist_ok=True)

    def cached(key: str, make: Callable[[], Recorded]) -> Recorded:
        path = CACHE / f"{key}.npz"
        if not path.exists():
            r = make()
            np.savez(path, loss=r.loss, probe=r.probe, grad_norm=r.grad_norm, n_samples=r.n_samples,
                     network=r.network, batch_size=r.batch_size, name=r.name, faults=json.dumps(r.faults))  # fmt: skip
            if not quiet:
                print(f"\rmade {key:<40}", end="", file=sys.stderr)
        z = np.load(path)
        faults = tuple((int(s), str(k), bool(v)) for s, k, v in json.loads(str(z["faults"])))
        columns = (z[c] for c in ("loss", "probe", "grad_norm", "n_samples", "network"))
        return Recorded(str(z["name"]), *columns, int(z["batch_size"]), faults)

    healthy, faulty = [], []
    for seed in seeds:
        healthy += [cached(f"h-{s.name}-{seed}", partial(train, s, seed, {})) for s in SETUPS]
        healthy += [cached(f"s-{k}-{seed}", partial(synthetic, k, seed)) for k in SYNTHETIC]
        faulty += [cached(f"f-{s.name}-{seed}", partial(train, s, seed, faults_for(s, seed))) for s in FAULTY]
    if not quiet:
        print(file=sys.stderr)
    return healthy, faulty


# --------------------------------------------------------------------------- the detectors, and how they score


def ours(r: Recorded, *, stride: int = 1, **options: object) -> list[int]:
    """Onsets found by `whyspike.detect.Detector`; `stride` 0 is without a probe."""
    detector = Detector(batch_size=r.batch_size, **options)  # type: ignore[arg-type]
    probe = r.probe.tolist()
    for step, (loss, n) in enumerate(zip(r.loss.tolist(), r.n_samples.tolist(), strict=True)):
        p = probe[step] if stride and step % stride == 0 and probe[step] == probe[step] else None
        detector.update(step, loss, n_samples=n, probe=p)
    return [e.step for e in detector.finish()]


def z_scores(x: np.ndarray, width: int = 100) -> np.ndarray:
    """Score of each value against the `width` values before it; the first 20 score 0."""
    z = np.zeros(len(x))
    for t in range(20, len(x)):
        past = x[max(0, t - width) : t]
        z[t] = (x[t] - past.mean()) / (past.std() + 1e-12)
    return z


def episodes(alarms: np.ndarray) -> list[int]:
    out: list[int] = []
    last = -(10**9)
    for t in np.flatnonzero(alarms):
        if t > last + 30:
            out.append(int(t))
        last = t
    return out


def z_above(threshold: float) -> Callable[[Recorded], list[int]]:
    return lambda r: episodes(z_scores(r.loss) > threshold)


def two_stage(r: Recorded) -> list[int]:
    """The two-stage rule: z > 3 of loss or gradient norm, and the probe up by 10 % within 5 steps, or z > 8."""
    z = np.fmax(z_scores(r.loss), z_scores(r.grad_norm) if np.isfinite(r.grad_norm).all() else 0.0)
    alarms = z > 8
    for t in np.flatnonzero(z > 3):
        before = r.probe[max(0, t - 5) : t]
        if len(before) and np.isfinite(before).all() and r.probe[t : t + 6].max() > 1.1 * np.median(before):
            alarms[t] = True
    return episodes(alarms)


@dataclass(frozen=True)
class Score:
    """How one detector did on a set of series."""

    name: str
    false: int
    real: int  # events of healthy trainings in which the network itself moved
    healthy_steps: int
    hits: int
    faults: int
    false_in_faulty: int
    delays: tuple[int, ...]
    by_fault: dict[str, tuple[int, int]]

    @property
    def per_thousand(self) -> float:
        return 1000 * self.false / self.healthy_steps

    @property
    def upper(self) -> float:
        return 1000 * poisson_upper(self.false, self.healthy_steps)

    @property
    def recall(self) -> float:
        return self.hits / self.faults

    @property
    def f1(self) -> float:
        wrong = self.false + self.false_in_faulty + (self.faults - self.hits)
        return 2 * self.hits / (2 * self.hits + wrong)


def network_moved(r: Recorded, onset: int) -> bool:
    """Whether an event of a healthy training is a real one: a last batch of two samples may throw the network."""
    after, before = r.network[max(0, onset - 1) : onset + 6], r.network[max(0, onset - 64) : onset]
    return len(before) > 0 and bool(np.isfinite(before).all()) and after.max() >= VISIBLE * np.median(before)


def score(name: str, find: Callable[[Recorded], list[int]], healthy: list[Recorded], faulty: list[Recorded]) -> Score:
    false = real = 0
    for r in healthy:
        moved = [network_moved(r, onset) for onset in find(r)]
        real += sum(moved)
        false += len(moved) - sum(moved)
    hits = wrong = 0
    delays: list[int] = []
    by_fault = dict.fromkeys(FAULTS, (0, 0))
    for r in faulty:
        onsets = find(r)
        for step, kind, seen in r.faults:
            if not seen:
                continue
            found = [o - step for o in onsets if -1 <= o - step <= HIT_WITHIN]
            hits += bool(found)
            delays += found[:1]
            by_fault[kind] = (by_fault[kind][0] + bool(found), by_fault[kind][1] + 1)
        wrong += sum(not any(-1 <= o - step <= AFTERMATH for step, _, _ in r.faults) for o in onsets)
    faults = sum(n for _, n in by_fault.values())
    return Score(name, false, real, sum(len(r.loss) for r in healthy), hits, faults, wrong, tuple(delays), by_fault)


def short_last_batch(seeds: tuple[int, ...]) -> list[int]:
    """At which occurrence a double-averaged short last batch (loss x8, 4 of 32 samples) is first found."""
    first = []
    for seed in seeds:
        for k in range(25):
            rng = np.random.default_rng([seed, 9, k])
            last = np.arange(33 * 12) % 33 == 32
            n = np.where(last, 4, 32)
            noise = 0.15 * np.sqrt(32 / n) * rng.standard_normal(len(n))
            loss = (0.5 + 2 / np.sqrt(1 + np.arange(len(n)) / 30)) * np.exp(noise)
            loss[last] *= 8
            none = np.full(len(n), np.nan)
            found = ours(Recorded("double-averaged", loss, none, none, n, none, 32, ()), stride=0)
            first.append(found[0] // 33 + 1 if found else 99)
    return first


def microseconds(healthy: list[Recorded]) -> float:
    """Cost of an update, with a probe every tenth step."""
    start = time.perf_counter()
    for r in healthy[:20]:
        ours(r, stride=10)
    return 1e6 * (time.perf_counter() - start) / sum(len(r.loss) for r in healthy[:20])


DETECTORS: tuple[tuple[str, Callable[[Recorded], list[int]]], ...] = (
    ("whyspike, probe every step", ours),
    ("whyspike, probe every 10 steps", partial(ours, stride=10)),
    ("whyspike, no probe", partial(ours, stride=0)),
    ("z > 3 (100 steps)", z_above(3)),
    ("z > 7 (100 steps)", z_above(7)),
    ("two stages: z > 3, then the probe or z > 8", two_stage),
)


def report(seeds: tuple[int, ...]) -> str:
    """Score every detector on these seeds, as Markdown."""
    healthy, faulty = series(seeds)
    scores = [score(name, find, healthy, faulty) for name, find in DETECTORS]
    real = sum(len(r.loss) for r in healthy if not r.name.startswith("synthetic"))
    out = [
        f"{scores[0].healthy_steps:,} healthy steps ({real:,} of real trainings), {scores[0].faults} visible faults.",
        "",
        "| detector | false per 1,000 steps | upper 95 % | real | recall | 95 % interval | F1 | delay: median, 90 % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for s in scores:
        low, high = wilson(s.hits, s.faults)
        delay = f"{np.median(s.delays):.0f}, {np.quantile(s.delays, 0.9):.0f}"
        out.append(
            f"| {s.name} | {s.per_thousand:.3f} ({s.false}) | {s.upper:.3f} | {s.real} | {s.recall:.2f} "
            f"| {low:.2f} to {high:.2f} | {s.f1:.2f} | {delay} |"
        )
    out += ["", "Recall by fault:", "", "| detector | " + " | ".join(FAULTS) + " |", "|---" * (len(FAULTS) + 1) + "|"]
    for s in scores:
        out.append(f"| {s.name} | " + " | ".join(f"{k} of {n}" for k, n in s.by_fault.values()) + " |")
    first = np.array(short_last_batch(seeds))
    shares = ", ".join(f"{k}: {np.mean(first <= k):.2f}" for k in (1, 2, 3))
    out += [
        "",
        f"A double-averaged last batch (4 of 32 samples, loss x8, {len(first)} runs, no probe) is found by its "
        f"occurrence number {shares}.",
        "",
        f"An update takes {microseconds(healthy):.1f} microseconds on average on this machine.",
    ]
    return "\n".join(out)


PAGE = """# The detector, scored

`python benchmarks/detectors.py` trains, injects and scores; `--calibrate` does so on the seeds that the thresholds
of `whyspike.detect` were chosen on. The seeds below (from 7000) were used for nothing else; those from 1000 to
6000 were each scored once with an earlier version (.096, .104, .092, .075, .171 and .100 events per 1,000 healthy
steps, real ones included, at recall .71, .76, .76, .80, .76 and .85).

Healthy: small networks (SGD, Adam; 8, 16 and 32 samples; label noise, cosine, warm restarts, step decay; full and
short last batches; scikit-learn's digits, a teacher network, regressions with Gaussian and t3 noise) and synthetic
noise (Gaussian, t3, lognormal, autoregressive, falling over decades, a negative log-density). Faults: inputs x15 in 4
samples, labels shifted, one step with lr x30, loss x8, weights perturbed, a short batch averaged twice. A fault is
visible when the loss or the probe (32 fixed samples) peaks, within 5 steps, at 1.5 times its median before and 1.5
times the peak of the same steps without the fault. A hit is an event that opens within 25 steps. An event within 100
steps after a fault counts as neither; F1 is over all series, so that it also falls with the number of healthy steps.
An event of a healthy training is real, and not false, when the loss on 512 of its samples peaks at 1.5 times its
median before within 5 steps: a last batch of two to four samples now and then does that to SGD with momentum.

{body}
"""


def main() -> None:
    """Score the detectors, and write the page when the seeds are the held-out ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calibrate", action="store_true", help="score the seeds that thresholds were chosen on")
    calibrate = parser.parse_args().calibrate
    body = report(CALIBRATION_SEEDS if calibrate else SCORING_SEEDS)
    print(body)
    if not calibrate:
        page = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "detectors.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(PAGE.format(body=body), encoding="utf-8")


if __name__ == "__main__":
    main()
