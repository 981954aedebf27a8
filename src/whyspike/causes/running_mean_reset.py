from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Run, Suspicion

if TYPE_CHECKING:
    from whyspike.deconvolve import Closing
    from whyspike.plotted import Plotted

LEAST_JUMP = 0.02  # of the loss; a smaller step at the boundary is nothing that anybody asks about
STEEP, FLAT = -0.65, -1.35  # around -1; single losses have 0 +- .4 in epochs of 20 steps (tests/test_deconvolve.py)
CLOSED = 0.25  # of the plotted jump may be left in the recovered losses
EARLY = 0.25  # of an epoch after the reset in which the curve is not yet smooth


class RunningMeanReset(Cause):
    """a plotted mean that starts afresh at every epoch.

    What happens:
        The progress bar and `logs["loss"]` of Keras, and many hand-written loops, show the mean of all losses since the
        epoch began. It lags behind the loss, more so the longer the epoch lasts, and at the next epoch it lets go of
        the old losses at once. The first values of an epoch are means over few steps, and noisy.

    How it looks:
        Smooth inside an epoch, a jump at its start, most often downwards; right after the jump the curve is noisy. The
        network and the loss of the steps know nothing of it.

    How we test it:
        Where the losses of the steps are recorded, the logged number is computed from them, and equals the running mean
        to its last digit. Where only the curve is left, it is taken apart: L_s = s M_s - (s - 1) M_(s-1). Two things must
        hold: the noise of the curve shrinks as 1/s inside the epoch, and the recovered losses have no jump.

    What to do:
        Nothing. Plot the loss of each step, a moving average of it, or the loss on fixed samples.

    References:
        Keras issue 7648. NVIDIA-Merlin/models issue 862. `reset_metrics()` in Keras 3's trainer. The formula and its
        rounding: tests/test_deconvolve.py.
    """

    family = "scale"
    aliases = ("progress-bar-loss", "cumulative-average", "keras-logs-loss")
    rank = 62
    harmless = True
    title = "the plotted loss is a mean that starts afresh at every epoch"

    def signature(self, seen: Observation) -> Suspicion | None:
        for found in seen.plotted.values():
            made = _recorded(self, seen, found)
            if made is not None:
                return made
        return _from_the_curve(self, seen)

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        name = next((f.name for f in seen.plotted.values() if _restarts(f)), None)
        what = f"The logged {name} is" if name else "The plotted loss is"
        return (
            f"{what} the mean of the losses since the epoch began: it jumps at the start of an epoch because the mean starts "
            "afresh there, not because the network changes."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        cure = Cure(
            words="none is needed; to see the loss itself, plot that of each step, or a moving average that is not reset",
            code={
                "torch": 'log("train_loss", loss.item())   # not total / (i + 1)',
                "keras": "class Net(keras.Model):\n"
                "    def compute_loss(self, *args, **kwargs):\n"
                "        loss = super().compute_loss(*args, **kwargs)\n"
                "        self.losses_of_steps.append(float(loss))   # run_eagerly=True, or the torch backend\n"
                "        return loss",
                "lightning": 'self.log("train_loss", loss, on_step=True, on_epoch=False)',
            },
            applicability="safe",
        )
        return [ScratchCure(cure=cure)]


def _restarts(found: Plotted) -> bool:
    return found.form == "running-mean" and not found.of_epoch


def _recorded(cause: Cause, seen: Observation, found: Plotted) -> Suspicion | None:
    """The losses of the steps lie beside the logged number."""
    if not _restarts(found):
        return None
    plotted, own = (_jump(seen.run, name) for name in (found.name, None))
    if plotted is None or own is None or abs(plotted) < LEAST_JUMP:
        return None
    beside = Evidence(
        statement=f"jump of {found.name} at the start of an epoch, in the median",
        observed=f"{100 * plotted:+.0f} %",
        expected=f"{100 * own:+.0f} %, as the loss of the steps goes from the last tenth of an epoch to the first of the next",
    )
    return suspect(cause, (), [found.evidence, beside], identity=True)


def _jump(run: Run, name: str | None) -> float | None:
    """From the last tenth of an epoch to the first tenth of the next, relative, median over epochs."""
    import numpy as np

    from whyspike.folding import places
    from whyspike.signals import logged

    series = None if name is None else logged(run)[name]
    step, value = (run.step, run.loss) if series is None else (series.step, series.value)
    if not run.steps_per_epoch:
        return None
    cycle, phase = places(run, step)
    firsts, lasts = {}, {}
    for e in np.unique(cycle):
        own = (cycle == e) & np.isfinite(value)
        firsts[int(e)], lasts[int(e)] = value[own & (phase >= 0) & (phase <= 0.1)], value[own & (phase >= 0.9)]
    made = [
        float(firsts[e].mean() / lasts[e - 1].mean() - 1)
        for e in firsts
        if len(firsts[e]) and len(lasts.get(e - 1, ())) and lasts[e - 1].mean() > 0
    ]
    return float(np.median(made)) if made else None


# --------------------------------------------------------------------------- only the curve is left


def _from_the_curve(cause: Cause, seen: Observation) -> Suspicion | None:
    events = _at_resets(seen)
    # What comes out of a replay bitwise is the loss of a step. Damage that heals as 1 / t looks like a mean.
    if not events or any(r.bitwise for r in seen.reproductions):
        return None
    made = _closing(seen.run)
    if made is None or not FLAT < made.slope < STEEP or made.interval[1] > STEEP / 2:
        return None
    from whyspike.deconvolve import TRUSTED

    evidence = [
        Evidence(
            statement="exponent of the curve's noise in the steps since the epoch began",
            observed=f"{made.slope:+.2f} ({made.interval[0]:+.2f} to {made.interval[1]:+.2f})",
            expected="-1 for a mean since the epoch began, 0 for the losses of single steps",
        ),
        Evidence(
            statement="jump at the start of an epoch once the mean is taken apart, in the median",
            observed=f"{made.recovered_jump:+.3g} +- {made.spread:.1g}, {made.jump:+.3g} in the plot",
            expected=f"0, with up to {made.limit:.1g} from rounding",
        ),
    ]
    if made.limit > TRUSTED * abs(made.jump):
        reason = f"the log has too few decimals: rounding alone makes {made.limit:.2g}; log more of them"
        return suspect(cause, events, evidence, outcome="untested", reason=reason)
    if abs(made.recovered_jump) > CLOSED * abs(made.jump) + 2 * made.spread + made.limit:
        reason = "the curve is a running mean, but the losses in it jump as well"
        return suspect(cause, events, evidence, outcome="refuted", reason=reason)
    return suspect(cause, events, evidence, identity=True)


def _at_resets(seen: Observation) -> list[Event]:
    """The waves over the epoch, and what happens soon after its start, where the mean is over few steps."""
    run = seen.run
    if not run.steps_per_epoch:
        return []
    events = []
    for e in seen.events:
        row = int(run.step.searchsorted(e.step))
        index = int(run.index[row]) if run.index is not None and row < len(run) else e.step % run.steps_per_epoch
        early = e.kind != "non-finite" and 0 <= index < EARLY * run.steps_per_epoch
        if (e.is_wave and e.period == run.steps_per_epoch) or (early and not e.is_wave):
            events.append(e)
    return events


def _closing(run: Run) -> Closing | None:
    import numpy as np

    from whyspike.deconvolve import closing
    from whyspike.folding import places

    cycle, phase = places(run, run.step)
    known = phase >= 0
    weight = np.round(phase * (run.steps_per_epoch or 1)) + 1
    return closing(run.loss[known], cycle[known], weight[known])
