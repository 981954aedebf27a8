from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.reproduction import Reproduction

ROUNDING = 1e-4  # relative, at the first step that differs: sums in another order differ by 1e-7 to 1e-6 in float32
SHARE = 0.5  # of the windows in which two runs differ: a training that is not deterministic is so everywhere


class Nondeterminism(Cause):
    """a training that is not deterministic: the same steps come out a little differently every time.

    What happens:
        Floating-point sums depend on their order, and some operations do not keep it: atomic additions on a GPU, results
        gathered from threads as they come, kernels chosen by timing. The first difference is in the last bit; a training
        is chaotic enough to make it visible after some hundred steps.

    How it looks:
        Like any other training. Two runs from one seed have the same curve at first and then drift apart; a spike of the
        one may be missing in the other. It makes no spike, but it limits what a replay can prove.

    How we test it:
        Recorded steps are run again from their own state, twice. The two runs differ from each other, by rounding at first,
        in most windows of the run. A corruption is single, large, and does not differ between the two runs.

    What to do:
        Nothing, unless runs must be repeatable; then ask for deterministic algorithms, which are slower.

    References:
        https://pytorch.org/docs/stable/notes/randomness.html. D. Goldberg 1991, What every computer scientist should know
        about floating-point arithmetic.
    """

    family = "numerics"
    aliases = ("non-deterministic", "reproducibility", "atomics")
    rank = 90
    harmless = True
    title = "the training is not deterministic, by rounding"

    def signature(self, seen: Observation) -> Suspicion | None:
        apart = _apart(seen.reproductions)
        if not apart:
            return None
        first = max(r.between for r in apart)
        last = max(r.largest for r in apart)
        steps = max(r.n_steps for r in apart)
        evidence = [
            Evidence(
                statement="windows of recorded steps that come out differently in two runs from the same state",
                observed=f"{len(apart)} of {len(seen.reproductions)}",
                expected="0 for a deterministic training; one, at most, for a corrupted number",
            ),
            Evidence(
                statement="relative difference of the loss at the first step that differs",
                observed=f"{first:.1g}",
                expected="about 1e-7, if it is the order of float32 sums",
            ),
            Evidence(
                statement=f"and at most, within {steps} steps",
                observed=f"{last:.1g}",
                expected="more: what an event must stand above in a replay of this run",
            ),
        ]
        return suspect(self, (), evidence, identity=True)

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        apart = _apart(seen.reproductions)
        if not apart:
            return super().sentence(seen, events)
        return (
            "Your training is not deterministic: run again from the same state, its losses differ by "
            f"{max(r.between for r in apart):.1g} at first and by up to {max(r.largest for r in apart):.1g} some steps later."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="ask for deterministic algorithms, if runs must be repeatable",
                    code={
                        "torch": "torch.use_deterministic_algorithms(True)   # CUBLAS_WORKSPACE_CONFIG=:4096:8",
                        "keras": "keras.utils.set_random_seed(0); tf.config.experimental.enable_op_determinism()",
                        "hf": "TrainingArguments(..., full_determinism=True)",
                        "lightning": "Trainer(..., deterministic=True)",
                    },
                    applicability="manual",
                )
            )
        ]


def _apart(made: Sequence[Reproduction]) -> list[Reproduction]:
    """The windows whose two runs differ, where most do and by rounding; else none."""
    apart = [r for r in made if r.between_step is not None]
    if len(made) < 2 or len(apart) < SHARE * len(made) or any(r.between > ROUNDING for r in apart):
        return []
    return apart
