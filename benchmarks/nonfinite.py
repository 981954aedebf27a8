"""The first value that is not finite: `python benchmarks/nonfinite.py` (two minutes).

Small trainings, each with one fault that makes an infinity or a NaN at a known step, in a known operation of a known
module: in the forward or the backward pass, in the loss function, the data, the update, or between two epochs. Each is
recorded and diagnosed as a user's would be. Right is only what the user reads: the step, the module and the operation, all
three. Writes docs/benchmarks/nonfinite.md.
"""

# ruff: noqa: E501  (sentences of the page stay whole)

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from whyspike.readers import read
from whyspike.record import watch
from whyspike.types import Diagnosis

OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "nonfinite.md"
N, BATCH, EPOCHS, WIDTH, CLASSES = 65, 8, 6, 8, 3  # 9 steps in an epoch, the last with one sample
STEPS = (0, 5, 31)  # at which a fault is switched on, in turn
ODD = 40  # the sample that is unlike the others, where the fault is in the data
Tensor = torch.Tensor
Do = Callable[[Tensor], Tensor]
Batch = tuple[Tensor, Tensor]


class Faulty(nn.Module):
    """Does something at one step of the training, and at each one if `at` is None. Buffers are part of a snapshot."""

    clock: Tensor

    def __init__(self, do: Do, at: int | None) -> None:
        super().__init__()
        self.do, self.at = do, at
        self.register_buffer("clock", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        now = int(self.clock)
        if self.training:
            self.clock += 1
        return self.do(x) if self.training and self.at in (None, now) else x


class Around(nn.Module):
    """As `Faulty`, with the fault inside a module of torch's own."""

    clock: Tensor

    def __init__(self, inner: nn.Module, at: int, before: Do, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.at, self.before, self.call = inner, at, before, call
        self.register_buffer("clock", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        now = int(self.clock)
        if self.training:
            self.clock += 1
        return self.call(self.inner, self.before(x)) if self.training and self.at == now else x


class NoGradient(torch.autograd.Function):
    """Nothing forwards, and a NaN on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad / 0 * 0


def network(middle: nn.Module | None) -> nn.Sequential:
    parts: dict[str, nn.Module] = {"first": nn.Linear(6, WIDTH), "squash": nn.Tanh()}
    if middle is not None:
        parts["middle"] = middle
    parts["body"] = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
    parts["head"] = nn.Linear(WIDTH, CLASSES)
    return nn.Sequential(OrderedDict(parts))


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def clock(model: nn.Module) -> int:
    """How many steps the network has been trained, in a training whose fault is in the loss function."""
    return int(model.get_buffer("middle.clock"))


@dataclass
class Case:
    """One fault, and what must be read of it."""

    words: str
    expected: str  # after the step: "log in module middle (Faulty), forward pass"
    middle: Callable[[int], nn.Module] | None = None  # of the step
    loss: Callable[[int], Callable[[nn.Module, Batch], Tensor]] | None = None
    odd: Callable[[Tensor, Tensor], None] | None = None  # changes the data in place; the fault comes with that sample
    adam: dict[str, float] | None = None
    between: int | None = None  # a weight is lost after so many steps
    accumulate: int = 1
    last: bool = False  # the fault comes with the last batch of an epoch


def forward(words: str, operation: str, do: Do) -> Case:
    expected = f"made by {operation} in module middle (Faulty), forward pass"
    return Case(words, expected, middle=lambda at: Faulty(do, at))


def backward(words: str, operation: str, do: Do) -> Case:
    expected = f"made by {operation} in module middle (Faulty), backward pass"
    return Case(words, expected, middle=lambda at: Faulty(do, at))


def inside(
    words: str,
    operation: str,
    inner: Callable[[], nn.Module],
    before: Do,
    call: Callable[[nn.Module, Tensor], Tensor] = lambda module, x: module(x),
) -> Case:
    expected = f"made by {operation} in module middle.inner ({type(inner()).__name__}), forward pass"
    return Case(words, expected, middle=lambda at: Around(inner(), at, before, call))


def in_loss(words: str, operation: str, do: Callable[[Tensor, Tensor], Tensor], place: str = "forward") -> Case:
    def loss(at: int) -> Callable[[nn.Module, Batch], Tensor]:
        def of(model: nn.Module, batch: Batch) -> Tensor:
            scores = model(batch[0])
            now = clock(model) == at + 1 and model.training
            return do(scores, batch[1]) if now else F.cross_entropy(scores, batch[1])

        return of

    expected = f"made by {operation} in the loss function, {place} pass"
    return Case(words, expected, middle=lambda at: Faulty(lambda x: x, -1), loss=loss)


def autocast(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.float16):
        return module(x).float()


def squares(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0])[:, 0], batch[1].float())


def _nan_input(x: Tensor, y: Tensor) -> None:
    x[ODD, 2] = float("nan")


def _zero_input(x: Tensor, y: Tensor) -> None:
    x[ODD] = 0


def _infinite_target(x: Tensor, y: Tensor) -> None:
    y[ODD] = float("inf")


def _lose_weight(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("body.0.weight")[0, 0] = float("nan")


def _two_of_three(model: nn.Module, batch: Batch) -> Tensor:
    first, head = model.get_submodule("first"), model.get_submodule("head")
    return F.cross_entropy(head(torch.tanh(first(batch[0])))[:, :2], batch[1].clamp(max=1))


def _by_length(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x / x.norm(dim=1, keepdim=True)), y)


def _nothing(x: Tensor) -> Tensor:
    return torch.zeros_like(x) * x


def _wide_convolution() -> nn.Module:
    made = nn.Conv1d(1, 1, 3, padding=1)
    with torch.no_grad():
        made.weight.fill_(9)
    return made


CASES: list[Case] = [
    # ---------------------------------------------------------------- forward, in a module of the user's own
    forward("log of 0", "log", lambda x: torch.log(_nothing(x))),
    forward("log of a negative number", "log", lambda x: torch.log(x - 10)),
    forward("0 / 0", "div", lambda x: _nothing(x) / _nothing(x)),
    forward("1 / 0", "reciprocal", lambda x: torch.reciprocal(_nothing(x))),
    forward("division in place by a norm of 0", "div", lambda x: x.clone().div_(_nothing(x).norm(dim=1, keepdim=True))),
    forward("exp overflows", "exp", lambda x: torch.exp(200 + x)),
    forward("sqrt of a negative number", "sqrt", lambda x: torch.sqrt(x - 10)),
    forward("a fractional power of a negative number", "pow", lambda x: (x - 10) ** 0.5),
    forward("a product overflows", "mul", lambda x: (x + 2) * 1e38 * 1e38),
    forward("a matrix product overflows", "matmul", lambda x: (x * 1e30) @ torch.full((WIDTH, WIDTH), 1e30)),
    forward(
        "einsum overflows", "einsum", lambda x: torch.einsum("ni,ij->nj", x * 1e30, torch.full((WIDTH, WIDTH), 1e30))
    ),
    forward(
        "softmax of a row that is masked altogether",
        "softmax",
        lambda x: torch.softmax(x.masked_fill(torch.ones_like(x, dtype=torch.bool), float("-inf")), 1),
    ),
    forward("the mean of an empty selection", "mean", lambda x: x + x[x > 1e9].mean()),
    forward("logit of 1", "logit", lambda x: torch.logit(torch.ones_like(x) + _nothing(x))),
    forward("float16 overflows in a cast", "half", lambda x: (x.abs() + 1).mul(7e4).half().float()),
    forward("bfloat16 overflows in a product", "mul", lambda x: ((x.abs() + 1).bfloat16() * 1e38 * 1e38).float()),
    # ---------------------------------------------------------------- forward, in a module of torch's
    inside(
        "a linear layer under autocast to float16",
        "linear",
        lambda: nn.Linear(WIDTH, WIDTH),
        lambda x: x * 3e5,
        autocast,
    ),
    inside("LayerNorm without eps, of a constant", "layer_norm", lambda: nn.LayerNorm(WIDTH, eps=0.0), _nothing),
    inside(
        "a convolution overflows",
        "conv1d",
        _wide_convolution,
        lambda x: x * 1e38,
        lambda module, x: module(x[:, None])[:, 0],
    ),
    # ---------------------------------------------------------------- backward
    backward("sqrt has no gradient at 0", "sqrt", lambda x: x + _nothing(x).sqrt()),
    backward("nor has a power of .5", "pow", lambda x: x + _nothing(x) ** 0.5),
    backward("where hides the value, not its gradient", "sqrt", lambda x: torch.where(x > 9, _nothing(x).sqrt(), x)),
    backward("acos at 1", "acos", lambda x: x + torch.acos(_nothing(x) + 1)),
    backward(
        "eigenvectors of equal eigenvalues",
        "linalg_eigh",
        lambda x: x + torch.linalg.eigh(torch.eye(WIDTH) + _nothing(x).T @ x).eigenvectors[0],
    ),
    backward("the user's own autograd.Function", "NoGradient", NoGradient.apply),  # type: ignore[arg-type, return-value]
    backward(
        "inside a checkpoint", "sqrt", lambda x: x + checkpoint(lambda z: _nothing(z).sqrt(), x, use_reentrant=False)
    ),  # type: ignore[operator]
    backward("float16 overflows on the way back", "float", lambda x: (x.half().float() - x.detach()) * 1e9 + x),
    # ---------------------------------------------------------------- in the loss function
    in_loss(
        "log of a probability of 0",
        "log",
        lambda s, y: -torch.log(torch.softmax(s * 1e4, 1).gather(1, y[:, None])).mean(),
    ),
    in_loss(
        "binary cross-entropy by hand", "log", lambda s, y: -torch.log(1 - torch.sigmoid(s.abs() * 1e4 + 100)).mean()
    ),
    in_loss(
        "a divergence of one-hot targets",
        "log",
        lambda s, y: (h := F.one_hot(y, CLASSES).float()).mul(h.log() - s).sum(),
    ),
    in_loss("the mean of nothing", "mean", lambda s, y: F.cross_entropy(s, y, reduction="none")[y > 99].mean()),
    in_loss("every target ignored", "cross_entropy", lambda s, y: F.cross_entropy(s, torch.full_like(y, -100))),
    in_loss("a Poisson loss whose rate overflows", "exp", lambda s, y: (torch.exp(s + 200) - s).mean()),
    in_loss(
        "CTC, with a target longer than the input",
        "ctc_loss",
        lambda s, y: F.ctc_loss(
            s.log_softmax(1)[None],
            torch.ones(len(y), 4, dtype=torch.long),
            torch.full((len(y),), 1),
            torch.full((len(y),), 4),
        ),
    ),
    in_loss(
        "the root of a squared error that is 0", "sqrt", lambda s, y: ((s - s.detach()) ** 2).mean().sqrt(), "backward"
    ),
    # ---------------------------------------------------------------- data, update, between two steps
    Case("a NaN in one sample", "in the batch itself", odd=_nan_input),
    Case("an infinite target", "in the batch itself", odd=_infinite_target, loss=lambda at: squares),
    Case(
        "a sample without length",
        "made by div in the loss function, forward pass",
        odd=_zero_input,
        loss=lambda at: _by_length,
    ),
    Case(
        "a sample without length, three batches in a step",
        "made by div in the loss function, forward pass",
        odd=_zero_input,
        loss=lambda at: _by_length,
        accumulate=3,
    ),
    Case(
        "the standard deviation of one sample",
        "made by std in module middle (Faulty), forward pass",
        middle=lambda at: Faulty(lambda x: x / (1 + x.std(0)), None),
        last=True,
    ),
    Case(
        "Adam without eps, on a weight that has no gradient",
        "Adam.step() made it of finite gradients, in the weights of head (Linear)",
        loss=lambda at: _two_of_three,
        adam={"lr": 1e-3, "eps": 0.0},
    ),
    Case(
        "a weight lost between two epochs",
        "in the weights of module body.0 (Linear), from before this step",
        between=3 * (N // BATCH + 1),
    ),
]


# --------------------------------------------------------------------------- training and reading


def train(case: Case, at: int, folder: Path) -> tuple[Diagnosis, int]:
    """Train, diagnose and prove. Returns what was said, and the step at which the fault was."""
    g = torch.Generator().manual_seed(7)
    x, y = torch.randn(N, 6, generator=g), torch.randint(CLASSES, (N,), generator=g)
    if case.loss is not None and case.odd is _infinite_target:
        y = y.float()
    if case.odd is not None:
        case.odd(x, y)
    torch.manual_seed(1)
    model = network(case.middle(at) if case.middle else None)
    loss_fn = case.loss(at) if case.loss else cross_entropy
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if case.adam is not None:
        optimizer = torch.optim.Adam(model.parameters(), **case.adam)  # type: ignore[arg-type]
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(3))
    with watch(model, optimizer, loss_fn=loss_fn, path=folder / "run") as rec:
        waiting: list[Tensor] = []
        steps = 0
        for _ in range(EPOCHS * case.accumulate):
            for batch in rec.batches(loader):
                if not waiting:
                    optimizer.zero_grad()
                loss = loss_fn(model, batch)
                (loss / case.accumulate).backward()
                waiting.append(loss.detach())
                if len(waiting) < case.accumulate:
                    continue
                optimizer.step()
                rec.step(torch.stack(waiting).mean())
                waiting.clear()
                steps += 1
            if steps == case.between:
                _lose_weight(model)
    made = rec.diagnose(prove=True)
    if case.odd is not None:
        record = read(folder / "run")
        assert record.sample_ids is not None
        at = next(int(s) for s, ids in zip(record.step, record.sample_ids, strict=True) if ODD in np.asarray(ids))
    elif case.last:
        at = N // BATCH
    elif case.adam is not None:
        at = 0  # its moments are 0 / 0 in the first update
    return made, at


def said(made: Diagnosis) -> list[str]:
    """The sentences that name a first value that is not finite."""
    lines = [made.answer.sentence, *(e.observed for v in made.verdicts for e in v.evidence)]
    return [
        line
        for line in lines
        if " at step " in line and (", made by" in line or "weights of" in line or "itself" in line)
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", help="cases whose words hold this; nothing is written then")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="std")  # torch's own, of the fault
    rows, right = [], 0
    cases = [c for c in CASES if not chosen.only or chosen.only in c.words]
    for number, case in enumerate(cases):
        at = STEPS[number % len(STEPS)] if case.between is None else case.between
        with tempfile.TemporaryDirectory() as folder:
            made, at = train(case, at, Path(folder))
        named = said(made)
        expected = [f"{value} at step {at}, {case.expected}" for value in ("nan", "inf")]
        ok = any(e in line for line in named for e in expected)
        if case.odd is not None:
            ok = ok and any(f"of sample {ODD}" in line for line in named)
        right += ok
        rows.append(f"| {case.words} | {at} | {case.expected.removeprefix('made by ')} | {'yes' if ok else 'NO'} |")
        print(f"{'ok ' if ok else 'NO '} {case.words}: step {at}, {case.expected}", file=sys.stderr, flush=True)
        if not ok:
            print("    ", named or made.answer.sentence, file=sys.stderr, flush=True)
    page = [
        "# The first value that is not finite, measured",
        "",
        "`python benchmarks/nonfinite.py`",
        "",
        f"{len(cases)} trainings of {EPOCHS * (N // BATCH + 1)} steps, each with one fault. Step, module and operation, as the "
        f"user reads them, are right in {right} of {len(cases)} (asked: all). Where the fault is in a sample, its dataset index "
        "must be named, too.",
        "",
        "| fault | step | where | right |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    if chosen.only:
        print("\n".join(page))
        return
    OUT.write_text("\n".join(page), encoding="utf-8")
    print(f"{right} of {len(cases)} right; wrote {OUT.name}")


if __name__ == "__main__":
    main()
