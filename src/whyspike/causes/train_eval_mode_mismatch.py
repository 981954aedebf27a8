from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whyspike.cause import Cause, Observation, ScratchCure, Setup, suspect
from whyspike.types import Cure, Event, Evidence, Note, Suspicion

if TYPE_CHECKING:
    from whyspike.batchnorm import EvalGap

RATIO = 1.25  # loss in eval mode over that in train mode, dropout off; 1.00 to 1.06 in the healthy twin (seeds 0-4)
REMOVED = 0.8  # of the gap that statistics learned anew must close (as judge.REMOVED)
SLOW, FAST = 0.005, 0.5  # of torch's momentum: an average over 200 steps, and one over little more than the last batch


class TrainEvalModeMismatch(Cause):
    """a network that is another one in eval mode: running statistics that do not belong to its weights.

    What happens:
        In train mode BatchNorm normalises by the batch, in eval mode by running statistics. Where these lag behind the
        weights, or are those of the last batch alone, the evaluated network is not the trained one. torch and Keras count
        momentum the other way round: torch's .1 is Keras's .9, and .99 in Keras takes some hundred steps.

    How it looks:
        A validation loss that is high, jumps and recovers by itself while the training loss falls quietly. Dropout alone
        does the opposite, and quietly: the training loss lies above the validation loss, which is no fault.

    How we test it:
        The same training batches are evaluated in train mode, in eval mode, and in eval mode with statistics learned anew
        from other batches at the same weights, dropout off in all of them. Where the gap between the first two is closed
        by the third, nothing but the statistics makes it.

    What to do:
        Let the statistics learn faster (momentum), or learn them anew before an evaluation.

    References:
        https://github.com/keras-team/keras/issues/6977. torch.optim.swa_utils.update_bn learns them anew.
        torch.nn.BatchNorm1d says how momentum is counted.
    """

    family = "network"
    aliases = ("running-statistics", "batchnorm-momentum", "dropout-gap", "model.eval is worse")
    rank = 30
    title = "the network in eval mode is not the one that is trained"

    def preflight(self, setup: Setup) -> Note | None:
        momentum = setup.facts.get("batch_norm_momentum")
        if not isinstance(momentum, float) or SLOW <= momentum <= FAST:
            return None
        what = (
            "takes over nearly the last batch alone" if momentum > FAST else f"averages over {1 / momentum:,.0f} steps"
        )
        return Note(
            id=self.id,
            text=f"BatchNorm has momentum {momentum:g}, which in torch {what}: the network in eval mode may be another one "
            "than the trained one. torch's momentum is 1 minus that of Keras",
        )

    def signature(self, seen: Observation) -> Suspicion | None:
        worst = _worst(seen.eval_gaps)
        if worst is None:
            return None
        evidence = [
            Evidence(
                statement="loss of the same training batches in eval and in train mode, dropout off "
                f"(before step {worst.step})",
                observed=f"{worst.running:.3g} and {worst.own:.3g}: {worst.ratio:.2f} times",
                expected="about the same",
            ),
            Evidence(
                statement="share of that gap closed by statistics learned anew from other batches, at the same weights",
                observed=f"{worst.removed:.0%}",
                expected="100 % if only the statistics make it, 0 % if they have no part in it",
            ),
            Evidence(
                statement="states of the training at which it is so",
                observed=f"{sum(map(_wrong, seen.eval_gaps))} of {len(seen.eval_gaps)}",
                expected=f"0 of {len(seen.eval_gaps)}",
            ),
        ]
        # What shows in the probe alone, which is measured in eval mode, is the same fault.
        events = [e for e in seen.events if e.reported is None or abs(e.reported - 1) < 0.1]
        return suspect(self, [e for e in events if (e.state or 0) >= 1.1], evidence, identity=True, harm="damaging")

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        worst = _worst(seen.eval_gaps)
        if worst is None:
            return super().sentence(seen, events)
        return (
            f"In eval mode the network has {worst.ratio:.2g} times the loss that the same batches have in train mode: the "
            "running statistics of BatchNorm do not belong to its weights."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        return [
            ScratchCure(
                cure=Cure(
                    words="let the running statistics follow faster",
                    code={
                        "torch": "nn.BatchNorm2d(channels, momentum=0.1)   # the share of the new batch",
                        "keras": "keras.layers.BatchNormalization(momentum=0.9)   # the share of what was there",
                    },
                    applicability="safe",
                )
            ),
            ScratchCure(
                cure=Cure(
                    words="or learn them anew before an evaluation",
                    code={
                        "torch": "torch.optim.swa_utils.update_bn(loader, model)",
                        "keras": "for x in batches: model(x, training=True)   # momentum low, before evaluate()",
                        "lightning": "def on_validation_start(self):\n"
                        "    torch.optim.swa_utils.update_bn(train_loader, self)",
                    },
                    applicability="manual",
                )
            ),
        ]


def _wrong(gap: EvalGap) -> bool:
    return gap.ratio >= RATIO and gap.removed >= REMOVED


def _worst(gaps: Sequence[EvalGap]) -> EvalGap | None:
    """The largest gap, where at least half of the states have one."""
    wrong = [g for g in gaps if _wrong(g)]
    return max(wrong, key=lambda g: g.ratio) if wrong and 2 * len(wrong) >= len(gaps) else None
