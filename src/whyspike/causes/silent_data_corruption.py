from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Harm, Suspicion

if TYPE_CHECKING:
    from whyspike.reproduction import Reproduction

LARGE = 1e-3  # relative to the loss; rounding is 1e-7 at its first step (nondeterminism), and grows only later
SOON = 8  # steps after the place within which an event begins that comes from it
OTHERS = 2  # windows that must be bitwise the record, so that the record can be had at all
VISIBLE = 1.1  # a probe loss below so many times its level is no damage (the contract)


class SilentDataCorruption(Cause):
    """a silent data corruption: the machine once computed or kept a wrong number.

    What happens:
        A bit flips in a memory without error correction, or a worn core multiplies wrongly. No error is raised. One weight,
        gradient or activation is wrong by a factor of 2, or of 2^64, and the training goes on from there.

    How it looks:
        A spike, a step or a NaN out of nowhere, once. The same run from the same seed does not have it.

    How we test it:
        The recorded steps are run again from the state before them, twice. The two runs are bitwise the same, and the
        record is bitwise theirs up to one step and far from them afterwards; other windows of the run come out bitwise as
        they were. That is Megatron's test for a transient error: what is not reproduced in place was no property of data
        or weights. Rounding (nondeterminism) differs a little, everywhere, and between the two runs as well.
        Code of your own that changes weights at one step, outside of the loss, the optimizer, an evaluation and
        load_state_dict, looks the same from outside: rule that out first.

    What to do:
        Go back to the state before that step and train on. Where it happens again on the same machine, take the machine
        out and test it.

    References:
        Dixit et al. 2021, Silent Data Corruptions at Scale, arXiv:2102.11245. Megatron-LM, rerun_state_machine.py
        (transient and persistent errors).
    """

    family = "numerics"
    aliases = ("bit-flip", "sdc", "hardware-error", "transient error")
    rank = 3
    title = "a wrong number that this machine does not compute again"

    def signature(self, seen: Observation) -> Suspicion | None:
        found = _place(seen.reproductions)
        if found is None or seen.accumulation is not None:
            # How a loop weighs its micro-batches is learnt from the record; one odd window would look just like this.
            return None
        others = [r for r in seen.reproductions if r.bitwise]
        step = found.step or 0
        steps = step - found.first_step
        evidence = [
            Evidence(
                statement=f"loss of step {step}, recorded and run again from the state {steps} steps before",
                observed=f"it differs by {found.difference:.2g} of its size; the {steps} steps before are bitwise the same",
                expected="bitwise the same",
            ),
            Evidence(
                statement="two runs of these steps, held against each other",
                observed="bitwise the same",
                expected="bitwise the same on one machine; of a training that is not deterministic they differ",
            ),
            Evidence(
                statement="other windows of the run that come out bitwise as they were recorded",
                observed=f"{len(others)} of {len(others)}",
                expected=f"{len(others)} of {len(others)}: states and batches are recorded completely",
            ),
        ]
        events = [e for e in seen.events if not e.is_wave and step - 1 <= e.step <= step + SOON]
        return suspect(self, events, evidence, identity=True, alone=True, harm=_harm(seen, step))

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        found = _place(seen.reproductions)
        if found is None:
            return super().sentence(seen, events)
        return (
            f"At step {found.step} the machine computed or kept a wrong number: run again from the state before, the steps "
            "come out bitwise as recorded up to there, and without the spike from there on."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        found = _place(seen.reproductions)
        before = f" {found.step}" if found is not None else ""
        return [
            ScratchCure(
                cure=Cure(
                    words=f"go back to the checkpoint before step{before} and train on; if it comes again, test the machine",
                    code={
                        "torch": "model.load_state_dict(...); optimizer.load_state_dict(...)   # of the last good step\n"
                        "# NVIDIA: dcgmi diag -r 3; a host: stressapptest, or memtest86+",
                        "keras": "keras.callbacks.BackupAndRestore(folder)   # resumes from the last good epoch",
                        "hf": "trainer.train(resume_from_checkpoint=folder)",
                        "lightning": "trainer.fit(model, ckpt_path=path)",
                    },
                    applicability="manual",
                )
            )
        ]


def _place(made: Sequence[Reproduction]) -> Reproduction | None:
    """The window with the place, where there is exactly one such place and everything else is bitwise."""
    apart = [r for r in made if not r.bitwise]
    if not apart or len(made) - len(apart) < OTHERS or len({r.step for r in apart}) != 1:
        return None
    # A window that begins right there has the state after it, or lacks a part of the state.
    before = [r for r in apart if r.step is not None and r.step > r.first_step]
    if len(before) < len(apart):
        return None
    found = max(before, key=lambda r: r.n_steps)
    exact = all(r.between_step is None for r in apart)
    return found if exact and found.largest >= LARGE else None


def _harm(seen: Observation, step: int) -> Harm:
    """From the recorded probe loss: the replays do not have the event."""
    probe = seen.run.signals.get("probe")
    if probe is None:
        return "damaging"
    before = probe.value[(probe.step < step) & (probe.step >= step - 64)]
    after = probe.value[(probe.step >= step) & (probe.step < step + 32)]
    if not len(before) or not len(after):
        return "damaging"
    high = ~(after < VISIBLE * float(np.median(before)))
    return "damaging" if high.any() else "cosmetic"
