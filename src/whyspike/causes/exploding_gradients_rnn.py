from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whyspike.cause import Cause, Draw, Observation, ScratchCure, suspect
from whyspike.types import Cure, Event, Evidence, Suspicion

if TYPE_CHECKING:
    from whyspike.seams import Intervention

RECURRENT = ("RNN", "GRU", "LSTM", "RNNBase")
SHORT = 4  # steps that a gradient still goes back in the replay; Pascanu et al. cut where the product has grown


class ExplodingGradientsRnn(Cause):
    """gradients that grow as they go back through the time steps of a recurrent network.

    What happens:
        A gradient that goes back k steps is multiplied k times by the recurrent matrix. Where that stretches, it grows
        exponentially with k: the loss as a function of the weights has walls, and a step from such a wall lands far away.

    How it looks:
        Spikes of the network with a gradient norm many times the ordinary one right before them. The samples are
        ordinary, and the recurrent weights have nearly all of the gradient.

    How we test it:
        The steps are replayed with backpropagation through time cut every 4 time steps: every state, output and loss stays
        what it was, only what comes from further back is missing in the gradient. The spike must go. As a placebo every
        weight's learning rate is raised or lowered by three tenths at random: as large a change of an ordinary step.

        This cause is a preview: in the plain networks that we trained, of 16 and 32 time steps, the cut removes 75 to 98 %
        of the spikes, and the placebo 23 to 37 % of them. They stand at the edge of what their step size can bear as much
        as at a wall.

    What to do:
        Clip the gradient. Gated cells (LSTM, GRU), a recurrent matrix that begins orthogonal, and layer normalisation keep
        it from growing.

    References:
        Pascanu, Mikolov & Bengio 2013, arXiv 1211.5063. Bengio, Simard & Frasconi 1994. Hochreiter & Schmidhuber 1997.
        Le, Jaitly & Hinton 2015, arXiv 1504.00941, on how a recurrent matrix begins.
    """

    family = "optimizer"
    status = "preview"
    aliases = ("exploding-gradients", "bptt", "gradient-explosion")
    needs = ("replay",)
    rank = 7
    measure = "state"
    title = "gradients grow as they go back through time"

    def signature(self, seen: Observation) -> Suspicion | None:
        layers = recurrent_layers_of(seen)
        if not layers:
            return None
        events = [e for e in seen.events if e.kind in ("spike", "divergence", "level-shift") and not e.period]
        moved = [e for e in events if e.state is None or e.state >= 1.1]
        if not moved:
            return None
        evidence = [
            Evidence(
                statement="recurrent layers of the network",
                observed=", ".join(layers),
                expected="at least one: a gradient grows with the time steps that it goes back",
            )
        ]
        norms = seen.run.signals.get("gradient_norm")
        median = seen.median_gradient_norm()
        if norms is not None and median:
            near = [_largest_near(norms.step, norms.value, e.step) / median for e in moved]
            near = [v for v in near if np.isfinite(v)]
            if near:
                evidence.append(
                    Evidence(
                        statement="largest gradient norm within 12 steps of an event, over the run's median (median of events)",
                        observed=f"x {np.median(near):.3g}",
                        expected="about x 2 for the largest of 24 ordinary ones",
                    )
                )
        return suspect(
            self, moved, evidence, outcome="untested", reason="only a replay can tell; ask for it with prove=True"
        )

    def interventions(self, seen: Observation, draw: Draw) -> Sequence[Intervention]:
        from whyspike.interventions import ClipGradNorm
        from whyspike.recurrent_interventions import TruncateGradient

        arms: list[Intervention] = [TruncateGradient(SHORT)]
        norm = seen.median_gradient_norm()
        if norm is not None:
            arms.append(ClipGradNorm(norm, f"gradient clipped to {norm:.2g}, the median norm", "always"))
        return arms

    def placebo(self, seen: Observation, draw: Draw) -> Intervention | None:
        from whyspike.optimizer_interventions import ShakeLr

        return ShakeLr(
            0.3, "every weight's learning rate 30 % higher or lower at random, as large a change of the step"
        )

    def sentence(self, seen: Observation, events: Sequence[Event]) -> str:
        layers = recurrent_layers_of(seen)
        if not layers:
            return super().sentence(seen, events)
        return (
            f"Gradients explode on their way back through the time steps of your recurrent network ({', '.join(layers)}): "
            "without what comes from more than 4 steps back, there is no spike."
        )

    def cures(self, seen: Observation) -> Sequence[ScratchCure]:
        from whyspike.interventions import ClipGradNorm

        norm = seen.median_gradient_norm() or 1.0
        limit = float(f"{norm / 4:.1g}")
        return [
            ScratchCure(
                cure=Cure(
                    words=f"clip the gradient, at a norm of {limit:g}",
                    code={
                        "torch": f"torch.nn.utils.clip_grad_norm_(model.parameters(), {limit:g})   # before step()",
                        "keras": f"keras.optimizers.SGD(lr, global_clipnorm={limit:g})",
                        "lightning": f"Trainer(gradient_clip_val={limit:g})",
                        "hf": f"TrainingArguments(max_grad_norm={limit:g})",
                    },
                    applicability="unsafe",
                ),
                make=lambda: ClipGradNorm(limit, f"gradient clipped to {limit:g}", "always"),
            ),
            ScratchCure(
                cure=Cure(
                    words="or use a gated cell, whose gradient has a path that is not multiplied",
                    code={
                        "torch": "torch.nn.GRU(inputs, hidden, batch_first=True)",
                        "keras": "keras.layers.GRU(hidden)",
                    },
                    applicability="unsafe",
                )
            ),
        ]


def recurrent_layers_of(seen: Observation) -> list[str]:
    """The recurrent layers that the record's header names."""
    named = seen.run.facts.get("layers")
    return [str(n) for n in named if str(n) in RECURRENT] if isinstance(named, list | tuple) else []


def _largest_near(step: np.ndarray, value: np.ndarray, at: int) -> float:
    rows = (step >= at - 12) & (step <= at + 12)
    return float(np.max(value[rows])) if rows.any() else float("nan")
