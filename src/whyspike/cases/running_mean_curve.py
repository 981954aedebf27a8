"""The same progress bar, of which only its log is left: epoch, step and the mean so far with four decimals.

The twin's log holds the loss of each step.
"""

from __future__ import annotations

from pathlib import Path

from whyspike.case import PLAIN, Case, Log, Vary
from whyspike.cases.running_mean_reset import loop


class _Progress:
    """What the loop calls in place of a recorder: it writes down what the progress bar shows."""

    def __init__(self) -> None:
        self.epoch, self.rows = -1, ["epoch,step,loss"]

    def batches(self, loader):
        self.epoch += 1
        return loader

    def step(self, loss: object) -> None:
        pass

    def log(self, *, train_loss: float) -> None:
        self.rows.append(f"{self.epoch},{len(self.rows) - 1},{train_loss:.4f}")


def _log(seed: int, vary: Vary, *, mean: bool) -> Log:
    def write(folder: Path) -> Path:
        progress = _Progress()
        loop(seed, vary, mean=mean).body(progress)  # type: ignore[arg-type]
        path = folder / "progress.csv"
        path.write_text("\n".join(progress.rows) + "\n", encoding="utf-8")
        return path

    return Log(write=write)


def sick(seed: int = 0, vary: Vary = PLAIN) -> Log:
    """The telling run."""
    return _log(seed, vary, mean=True)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Log:
    return _log(seed, vary, mean=False)


CASE = Case(
    words="the log of a progress bar: the mean of the losses since the epoch began, four decimals, nothing else",
    cause="running-mean-reset",
    sick=sick,
    healthy=healthy,
)
