"""Diagnoses as a user meets them, for the tests of the reports. The numbers follow the detector case (Q1)."""

from __future__ import annotations

import numpy as np

from whyspike.types import (
    Answer,
    Arm,
    Attribution,
    Cure,
    Diagnosis,
    Event,
    Evidence,
    Note,
    Run,
    RunInfo,
    Series,
    Trial,
    Verdict,
)

STEPS_PER_EPOCH = 33  # 1026 samples in batches of 32: the last one holds 2
EPOCHS = 12


def detector_loss(rng: np.random.Generator, *, sick: bool) -> np.ndarray:
    """A training loss over 12 epochs: falling, noisy, and, when sick, lifted by every last batch."""
    steps = STEPS_PER_EPOCH * EPOCHS
    base = 0.02 + 0.16 * np.exp(-np.arange(steps) / 90)
    loss = base * np.exp(0.12 * rng.standard_normal(steps))
    if sick:
        for epoch in range(1, EPOCHS):
            last = epoch * STEPS_PER_EPOCH + STEPS_PER_EPOCH - 1
            loss[last] *= 15.5 * np.exp(0.1 * rng.standard_normal())
            after = np.arange(last + 1, min(last + 22, steps))
            rise = (after - last) * np.exp(-(after - last) / 4.0)
            loss[after] *= 1 + 4.2 * rise / 1.47
    return loss


def detector_record(*, sick: bool, seed: int = 7) -> Run:
    rng = np.random.default_rng(seed)
    loss = detector_loss(rng, sick=sick)
    step = np.arange(len(loss))
    index = step % STEPS_PER_EPOCH
    probe = np.arange(0, len(loss), 4)
    network = np.where(index == STEPS_PER_EPOCH - 1, np.roll(loss, 1), loss) * 1.05
    return Run(
        source="whyspike-runs/detector",
        reader="whyspike",
        step=step,
        loss=loss,
        epoch=step // STEPS_PER_EPOCH,
        index=index,
        n_samples=np.where(index == STEPS_PER_EPOCH - 1, 2, 32),
        signals={"probe": Series(probe, network[probe])},
        steps_per_epoch=STEPS_PER_EPOCH,
        batch_size=32,
        facts={"model": "Detector", "parameters": 41_236, "optimizer": "SGD(lr=0.64, momentum=0.9)", "torch": "2.13.0"},
    )


def trials(cause: str, seed: int = 3) -> tuple[Trial, ...]:
    """Nine pairs of each arm, 4 steps before to 20 steps after the event."""
    rng = np.random.default_rng(seed)
    x = np.arange(-4, 21)
    grown = np.where(x >= 0, 1 + 3.6 * (x + 1) * np.exp(-(x + 1) / 4.0), 1.0)
    shapes = {
        ("baseline", "as it was"): (np.where(x == 0, 15.9, np.roll(grown, 1)), grown, 62.0),
        ("intervention", "loss x b/B on the last batch"): (np.ones(len(x)), 0.97 + 0 * x, 0.9),
        ("intervention", "gradients clipped at .1"): (np.where(x == 0, 15.9, 1.05), 1.04 + 0 * x, 3.1),
        ("placebo", "loss x b/B on an ordinary batch"): (np.where(x == 0, 15.7, np.roll(grown, 1)), grown * 0.99, 60.4),
    }
    made = []
    for pair in range(9):
        redraw = 0.1 * rng.standard_normal(len(x))
        size = float(np.exp(0.25 * rng.standard_normal()))
        for (arm, words), (reported, state, excess) in shapes.items():
            made.append(
                Trial(
                    cause=cause,
                    arm=arm,  # pyright: ignore[reportArgumentType]
                    words=words,
                    event=f"e{pair + 1}",
                    pair=pair,
                    backend="snapshot",
                    first_step=65 + 33 * pair - 5,
                    event_step=65 + 33 * pair - 1,
                    reported=tuple(0.031 * np.maximum(1 + (reported - 1) * size, 0.5) * np.exp(redraw)),
                    state=tuple(0.94 * np.maximum(1 + (state - 1) * size, 0.5)),
                    reported_reference=0.031,
                    state_reference=0.94,
                    excess=excess * size,
                    reproduced=True if arm == "baseline" else None,
                    noise=0.0 if arm == "baseline" else None,
                )
            )
    return tuple(made)


BASELINE_EXCESS = (58.1, 63.4, 61.0, 66.2, 59.7, 60.8, 64.9, 57.3, 62.6)


def explained() -> Diagnosis:
    """The detector whose loss is divided by the batch size twice."""
    events = tuple(
        Event(
            id=f"e{k}",
            kind="spike",
            step=33 * k + 32,
            last_step=33 * k + 48,
            reported=15.2 + 0.17 * (k % 5),
            state=8.1 + 0.2 * (k % 6),
            attribution=Attribution(
                scale=15.97,
                weights=1.04,
                data=0.98,
                interval={"scale": (15.9, 16.0), "weights": (1.02, 1.07), "data": (0.71, 1.34)},
            )
            if k == 1
            else None,
            sample_ids=("817", "52") if k == 1 else (),
        )
        for k in range(1, 11)
    )
    ids = tuple(e.id for e in events)
    double = Verdict(
        cause="double-averaged-loss",
        outcome="confirmed",
        harm="damaging",
        events=ids,
        evidence=(
            Evidence(
                statement="exponent of the loss in the batch size",
                observed="-1.000",
                expected="0 for a mean, 1 for a sum",
            ),
            Evidence(
                statement="spikes on the last batch of an epoch",
                observed="10 of 10",
                expected="3 % by chance",
                p_value=6.5e-16,
            ),
            Evidence(statement="height of the spike, logged", observed="15.6 x", expected="B/b = 32/2 = 16 x"),
        ),
        arms=(
            Arm(arm="baseline", words="as it was", n=9, excess=BASELINE_EXCESS),
            Arm(
                arm="intervention",
                words="loss x b/B on the last batch",
                n=9,
                excess=(0.4, 1.6, 0.9, -0.2, 1.1, 0.7, 1.4, 0.3, 0.8),
                share_removed=0.987,
                interval=(0.979, 0.994),
            ),
            Arm(
                arm="intervention",
                words="gradients clipped at .1",
                n=9,
                excess=(3.5, 2.8, 3.1, 4.0, 2.6, 3.2, 3.7, 2.4, 3.0),
                share_removed=0.949,
                interval=(0.941, 0.957),
            ),
            Arm(
                arm="placebo",
                words="loss x b/B on an ordinary batch: as large a change where it should not matter",
                n=9,
                excess=(57.9, 60.2, 62.4, 63.0, 58.8, 59.1, 66.0, 55.4, 61.7),
                share_removed=0.017,
                interval=(-0.012, 0.043),
            ),
        ),
        cures=(
            Cure(
                words="divide once: return the loss of the batch as one number, or multiply by its actual batch size",
                code={
                    "torch": "loss = per_image.sum() / n_boxes        # not: / n_boxes / len(images)",
                    "keras": (
                        "class DetectionLoss(keras.losses.Loss):\n"
                        "    def __init__(self):\n"
                        '        super().__init__(reduction="sum")'
                    ),
                },
                applicability="safe",
                verified=True,
                numbers={
                    "seeds": 3.0,
                    "final_probe_loss_before": 0.94,
                    "final_probe_loss_after": 0.092,
                    "events_before": 31.0,
                    "events_after": 0.0,
                },
            ),
            Cure(
                words="leave out the incomplete last batch; hides the fault, the rate still depends on the batch size",
                code={"torch": "DataLoader(dataset, batch_size=32, shuffle=True, drop_last=True)"},
                applicability="unsafe",
                verified=True,
                numbers={
                    "seeds": 3.0,
                    "final_probe_loss_before": 0.94,
                    "final_probe_loss_after": 0.081,
                    "events_before": 31.0,
                    "events_after": 0.0,
                },
            ),
            Cure(
                words="clip the gradients; protects the weights, the spike stays in the logged loss",
                code={"torch": "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.1)"},
                applicability="unsafe",
                verified=False,
                numbers={
                    "seeds": 3.0,
                    "final_probe_loss_before": 0.94,
                    "final_probe_loss_after": 0.098,
                    "events_before": 31.0,
                    "events_after": 33.0,
                },
            ),
        ),
    )
    momentum = Verdict(
        cause="momentum-carry-over",
        outcome="confirmed",
        harm="damaging",
        events=ids,
        evidence=(
            Evidence(
                statement="steps from the event to the highest probe loss",
                observed="4",
                expected="0 without momentum",
            ),
        ),
        arms=(
            Arm(arm="baseline", words="as it was", n=9, excess=BASELINE_EXCESS),
            Arm(
                arm="intervention",
                words="momentum set to zero right after the event",
                n=9,
                excess=(22.0, 24.1, 20.8, 26.3, 23.0, 21.9, 25.2, 20.1, 23.6),
                share_removed=0.627,
                interval=(0.601, 0.652),
            ),
            Arm(
                arm="placebo",
                words="momentum set to zero after an ordinary step",
                n=9,
                excess=(57.0, 62.1, 60.4, 66.0, 58.9, 60.2, 64.0, 57.1, 61.8),
                share_removed=0.012,
                interval=(-0.004, 0.02),
            ),
        ),
        cures=(),
    )
    others = (
        Verdict(
            cause="sum-reduction",
            outcome="refuted",
            harm="none",
            events=ids,
            reason="the exponent in the batch size is -1.000; a sum has 1",
        ),
        Verdict(
            cause="small-last-batch",
            outcome="refuted",
            harm="none",
            events=ids,
            reason="the same 2 samples inside a full batch leave 2 % of the excess: not the samples, their divisor",
        ),
        Verdict(
            cause="outlier-example",
            outcome="untested",
            harm="none",
            events=("e1",),
            reason="the run has no ids for samples 0 to 31; hand them over with rec.step(loss, sample_ids=ids)",
        ),
    )
    return Diagnosis(
        run=RunInfo(
            source="whyspike-runs/detector",
            reader="whyspike",
            steps=396,
            steps_per_epoch=33,
            signals=("loss", "n_samples", "sample_ids", "lr", "grad_norm", "probe"),
            notes=(Note(id="truncated-tail", text="the last 3 steps were not written; the record ends at step 395"),),
        ),
        answer=Answer(
            status="explained",
            cause="double-averaged-loss",
            harm="damaging",
            sentence=(
                "The loss is averaged over the batch and then divided by the batch size again, so the last batch of "
                "every epoch (2 samples instead of 32) weighs 16 times as much, and each such step throws it back."
            ),
        ),
        events=events,
        verdicts=(double, momentum, *others),
        record=detector_record(sick=True),
        trials=trials("double-averaged-loss"),
        missing=("the factors of event e4: no capsule covers step 164",),
    )


def healthy() -> Diagnosis:
    """Its twin that divides once."""
    return Diagnosis(
        run=RunInfo(
            source="whyspike-runs/detector-healthy",
            reader="whyspike",
            steps=396,
            steps_per_epoch=33,
            signals=("loss", "n_samples", "grad_norm", "probe"),
        ),
        answer=Answer(
            status="healthy",
            cause=None,
            harm=None,
            sentence="396 steps hold no event above the noise of mini-batches (1.31 x; an event begins at 2.4 x).",
        ),
        verdicts=(
            Verdict(
                cause="double-averaged-loss",
                outcome="refuted",
                harm="none",
                events=(),
                reason="the exponent in the batch size is 0.000; a mean has 0",
            ),
        ),
        record=detector_record(sick=False),
    )


def unexplained() -> Diagnosis:
    """Two spikes that no cause explains."""
    events = (
        Event(id="e1", kind="spike", step=141, last_step=146, reported=4.3, state=1.9),
        Event(id="e2", kind="spike", step=300, last_step=304, reported=5.1, state=None),
    )
    return Diagnosis(
        run=RunInfo(source="logs/gpt.csv", reader="csv", steps=396, signals=("loss",)),
        answer=Answer(
            status="unexplained",
            cause=None,
            harm=None,
            sentence="2 spikes stand above the noise, and none of the 6 causes that could be looked at explains them.",
        ),
        events=events,
        verdicts=(
            Verdict(
                cause="batch-size-noise",
                outcome="inconclusive",
                harm="none",
                events=("e1", "e2"),
                evidence=(
                    Evidence(
                        statement="height of the highest spike", observed="5.1 x", expected="up to 3.9 x", p_value=0.04
                    ),
                ),
                reason="two events are too few to tell: 8 pairs are needed",
            ),
            Verdict(
                cause="small-last-batch",
                outcome="untested",
                harm="none",
                events=("e1", "e2"),
                reason="the log does not say how many samples a step had; record with whyspike.watch(model, optimizer)",
            ),
        ),
    )


def cannot_say() -> Diagnosis:
    """A log that is too short to judge."""
    return Diagnosis(
        run=RunInfo(
            source="-",
            reader="csv",
            steps=9,
            signals=("loss",),
            notes=(
                Note(id="too-short", text="9 steps; at least 65 are needed before an event can be told from noise"),
            ),
        ),
        answer=Answer(
            status="cannot-say",
            cause=None,
            harm=None,
            sentence="9 steps are too few to tell a spike from noise; 65 are needed.",
        ),
    )


def hostile() -> Diagnosis:
    """Names and sentences that try to leave their place."""
    evil = 'run</script><b>bold</b><!--\u2028"&\x1b[31m'
    return Diagnosis(
        run=RunInfo(source=evil, reader="csv", steps=396, notes=(Note(id="averaged-values", text=evil),)),
        answer=Answer(
            status="explained", cause="double-averaged-loss", harm="cosmetic", sentence=f"Because of {evil}."
        ),
        events=(Event(id="e1", kind="spike", step=65, last_step=66, reported=float("inf")),),
        verdicts=(
            Verdict(
                cause="double-averaged-loss",
                outcome="likely",
                harm="cosmetic",
                events=("e1",),
                evidence=(Evidence(statement=evil, observed="a|b", expected="::error::%0A\n- c"),),
                arms=(Arm(arm="baseline", words=evil, n=1, excess=(float("nan"),)),),
                cures=(Cure(words=evil, code={"torch": f"```\n{evil}\n```"}, applicability="manual"),),
            ),
        ),
        record=detector_record(sick=True),
    )


EXAMPLES = {
    "explained": explained,
    "healthy": healthy,
    "unexplained": unexplained,
    "cannot-say": cannot_say,
    "hostile": hostile,
}
