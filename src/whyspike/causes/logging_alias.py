from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Observation, ScratchCure, suspect
from whyspike.form import ordinal
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.aliasing import Alias


class LoggingAlias(Cause):
    """a log of every k-th step, which meets the epoch's pattern only now and then.

    What happens:
        Something happens at one step of every epoch, and the log holds every k-th step. The two meet every
        lcm(S, k) steps only: with S = 1,001 steps in an epoch and k = 50, once in 50 epochs; with S = 1,000 either at
        every epoch or never. The plotted spikes are rare, and their period is that of nothing in the training.

    How it looks:
        Spikes with a long, exact period that no setting explains. It changes with the logging interval, and with the
        number of samples.

    How we test it:
        Arithmetic: all spikes of the plot must lie on one step of the epoch, every logged value of that step must be a
        spike, and no other. Where the losses of all steps are recorded, the logged number must equal every k-th of them,
        and the spikes between the logged steps are there to be seen.

    What to do:
        Log every step, or the mean over the steps since the last value. Then ask what happens at that step of the epoch:
        that is another cause.

    References:
        Nyquist's and Shannon's sampling theorem; the least common multiple.
    """

    family = "scale"
    aliases = ("aliasing", "logging-interval", "log_every_n_steps", "logging_steps")
    needs = ("steps_per_epoch",)
    rank = 43
    title = "the log holds every k-th step and meets the epoch's pattern only now and then"

    def signature(self, seen: Observation) -> Suspicion | None:
        made = _alias(seen)
        if made is None:
            return None
        index = f"step {made.index + 1} of {made.size:,}"
        evidence = [
            Evidence(
                statement=f"logged values of {index} in the epoch that are spikes",
                observed=f"{made.met} of {made.met}",
                expected=f"{made.met} of {made.met}, if it happens at that step of every epoch",
                p_value=1 / comb(made.met + made.others, made.met),  # of the spikes to lie on these values by chance
            ),
            Evidence(
                statement="spikes among the other logged values",
                observed=f"0 of {made.others:,}",
                expected="0",
            ),
            Evidence(
                statement="steps from one plotted spike to the next",
                observed=f"{made.apparent:,}",
                expected=f"{made.apparent:,} = lcm({made.size:,}, {made.every})",
            ),
        ]
        if made.plotted is not None:
            evidence.append(made.plotted.evidence)
            evidence.append(
                Evidence(
                    statement="spikes in the record, and in the plot",
                    observed=f"{made.recorded:,} every {made.size:,} steps; {made.met} every {made.apparent:,}",
                    expected=f"one in {made.apparent // made.size} of them is seen",
                )
            )
        return suspect(self, made.events, evidence, identity=True)

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        made = _alias(seen)
        if made is None:
            return super().sentence(seen, events)
        last = ", its last" if made.index == made.size - 1 else ", its first" if made.index == 0 else ""
        return (
            f"The log holds every {ordinal(made.every)} step and meets step {made.index + 1} of the epoch{last}, once in "
            f"{made.apparent // made.size} epochs: that is why the spikes seem to come every {made.apparent:,} steps. Each "
            "time it meets that step there is one. What happens there is another question, for a log of every step."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        cure = Cure(
            words="log every step, or the mean since the last value",
            code={
                "torch": "log(train_loss=loss.item())   # at every step",
                "keras": "keras.callbacks.TensorBoard(update_freq=1)",
                "hf": "TrainingArguments(..., logging_steps=1)",
                "lightning": "Trainer(..., log_every_n_steps=1)",
            },
            applicability="safe",
        )
        return [ScratchCure(cure=cure)]


def _alias(seen: Observation) -> Alias | None:
    from whyspike.aliasing import in_the_log, in_the_plot

    for found in seen.plotted.values():
        made = in_the_plot(seen, found)
        if made is not None:
            return made
    return in_the_log(seen)
