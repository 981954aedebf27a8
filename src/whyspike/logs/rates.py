"""What the logged learning rate says about the loss: where it steps down or jumps up, the loss may follow."""

from __future__ import annotations

import numpy as np

from whyspike.form import count, number
from whyspike.types import Note

STEP = 1.5  # times, from one value to the next: a smooth schedule never does that after its warm-up
STILL = 1.02  # times at most from one value to the next around a step: the rate stands still there, or glides
AROUND = 32  # values on either side of a step that its effect is read from
MOST = 6  # steps that are named; a rate with more of them has a note that counts


def lr_steps(step: np.ndarray, loss: np.ndarray, lr: np.ndarray | None) -> Note | None:
    """Where the learning rate changes at once, and what the loss does there.

    Args:
        step: of each value, int64 [T].
        loss: float64 [T].
        lr: float64 [T], nan where it is not known.
    """
    if lr is None or len(lr) < 4:
        return None
    with np.errstate(all="ignore"):
        ratio = lr[1:] / lr[:-1]
    beside = np.abs(np.log(np.where(ratio > 0, ratio, np.nan)))
    highest = np.maximum.accumulate(np.where(np.isfinite(lr), lr, 0.0))[:-1]
    sudden = (beside >= np.log(STEP)) & ((ratio < 1) | (lr[:-1] < highest))  # what rises to a new height warms up
    at = [r + 1 for r in np.flatnonzero(sudden).tolist() if ratio[r] > 1 or _still(beside, r)]
    if not at:
        return None
    said = [_said(step, loss, lr, r) for r in at[:MOST]]
    more = f"; and {len(at) - MOST} more times" if len(at) > MOST else ""
    return Note(id="lr-steps", text=f"the learning rate changes at once: {'; '.join(said)}{more}")


def _still(beside: np.ndarray, row: int) -> bool:
    """Whether the rate stands still, or glides, right before and after it falls: the end of a decay is no step."""
    near = [beside[r] for r in (row - 1, row + 1) if 0 <= r < len(beside)]
    return all(not np.isfinite(v) or v < np.log(STILL) for v in near)


def _said(step: np.ndarray, loss: np.ndarray, lr: np.ndarray, row: int) -> str:
    before, after = loss[max(0, row - AROUND) : row], loss[row : row + AROUND]
    before, after = before[np.isfinite(before)], after[np.isfinite(after)]
    moved = ""
    if len(before) and len(after):
        moved = f" (the loss goes from {number(float(np.median(before)))} to {number(float(np.median(after)))})"
    return f"{number(float(lr[row - 1]))} to {number(float(lr[row]))} at step {count(int(step[row]))}{moved}"
