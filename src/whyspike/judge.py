"""From trials to a verdict: the error rates and effect sizes of the project, in one place.

A cause is confirmed when the baseline reproduces at least 80 % of the recorded excess, the deciding intervention
removes at least 80 % of it, the placebo changes it by at most 20 %, and the permutation p of intervention against
placebo, after Holm over all causes tried, is at most .01 (the contract, idea 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whyspike.anytime import anytime_p
from whyspike.form import percent
from whyspike.stats import paired_permutation_p, rank_p, ratio_interval, share_removed
from whyspike.types import Arm, Evidence, Outcome, Suspicion, Trial

REPRODUCED = 0.8
REMOVED = 0.8
PLACEBO_CHANGE = 0.2
ALPHA = 0.01
WINSOR = 3.0  # times the baseline's median: one replay that overflows must not decide the shares of all the others
NOISE = 1e-6  # relative; rounding between thread counts is 2e-7 (experiment X4), which changes no verdict
REFUTED = 0.5  # an intervention that leaves more than half of the excess did not hit the cause


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the trials of one cause say before the correction for several causes."""

    arms: tuple[Arm, ...]
    reproduced: float  # share of baseline replays that are bitwise the record; nan without any
    noise: float  # largest relative difference of a baseline to the record
    removed: float
    placebo_change: float
    p_value: float


def acting(trials: Sequence[Trial]) -> list[Trial]:
    """The trials without those of a placebo that are bitwise their baseline.

    Such a change was none: a sample replaced by its twin in a batch of two. That the excess is still there after it
    says nothing.
    """
    base = {t.pair: t for t in trials if t.arm == "baseline"}

    def idle(t: Trial) -> bool:
        other = base.get(t.pair) if t.arm == "placebo" else None
        return other is not None and all(
            np.array_equal(a[: len(b)], b[: len(a)], equal_nan=True)
            for a, b in ((t.reported, other.reported), (t.state, other.state))
        )

    return [t for t in trials if not idle(t)]


def idle_placebo(words: str) -> str:
    """Why a cause whose placebo did nothing is not proven."""
    return f"its placebo ({words}) changes nothing here, so it shows nothing"


def _table(trials: Sequence[Trial], arm: str, words: str) -> dict[int, Trial]:
    return {t.pair: t for t in trials if t.arm == arm and t.words == words}


def judge(trials: Sequence[Trial]) -> Judged | None:
    """Compare the arms of one cause. The first intervention decides. None without a baseline or an intervention.

    Shares are ratios of means over pairs, each excess winsorised at three times the baseline's median.
    """
    base = {t.pair: t for t in trials if t.arm == "baseline"}
    named: dict[tuple[str, str], None] = dict.fromkeys((t.arm, t.words) for t in trials if t.arm != "baseline")
    if not base or not any(arm == "intervention" for arm, _ in named):
        return None
    base_excess = np.array([t.excess for t in base.values()])
    arms = [Arm(arm="baseline", words="as it was", n=len(base), excess=tuple(map(float, base_excess)))]
    most = WINSOR * float(np.median(base_excess))
    removed = change = float("nan")
    decided: dict[int, Trial] | None = None
    placebo: dict[int, Trial] = {}
    for arm, words in named:
        table = _table(trials, arm, words)
        shared = [k for k in base if k in table]
        a = np.minimum([base[k].excess for k in shared], most)
        b = np.minimum([table[k].excess for k in shared], most)
        comparable = len(shared) > 0 and bool(np.isfinite(a).all() and np.isfinite(b).all()) and a.mean() > 0
        share = share_removed(a, b) if comparable else float("nan")
        interval = ratio_interval(a, b) if comparable and len(shared) >= 2 else None
        arms.append(
            Arm(
                arm="intervention" if arm == "intervention" else "placebo",
                words=words,
                n=len(table),
                excess=tuple(float(t.excess) for t in table.values()),
                share_removed=float(share) if np.isfinite(share) else None,
                interval=interval,
            )
        )
        if arm == "intervention" and decided is None:
            decided, removed = table, float(share)
        elif arm == "placebo":
            placebo, change = table, abs(float(share))
    assert decided is not None
    checked = [t for t in base.values() if t.reproduced is not None]
    return Judged(
        arms=tuple(arms),
        reproduced=float(np.mean([bool(t.reproduced) for t in checked])) if checked else float("nan"),
        noise=max((t.noise or 0.0 for t in checked), default=float("nan")),
        removed=removed,
        placebo_change=change,
        p_value=_p_value(base, decided, placebo),
    )


def _p_value(base: dict[int, Trial], decided: dict[int, Trial], placebo: dict[int, Trial]) -> float:
    """One-sided: the intervention leaves less excess than the placebo (than the baseline, without a placebo).

    Runs from scratch are made until they decide, so their p-value is one that holds wherever one stops.
    """
    rival = placebo or base
    shared = [k for k in decided if k in rival]
    if any(t.backend == "scratch" for t in decided.values()):
        found = np.array([rival[k].excess - decided[k].excess for k in sorted(shared)])
        return anytime_p(found) if not np.isnan(found).any() else 1.0
    if len(base) == 1:
        drawn = np.array([t.excess for k, t in placebo.items() if k not in base])
        if not len(drawn):
            return 1.0
        # rank_p counts draws at least as large; "at most as large" is the same on negated values
        return float(rank_p(-next(iter(decided.values())).excess, -drawn))
    if len(shared) < 2:
        return 1.0
    clusters = [base[k].event_step for k in shared]
    a = np.array([rival[k].excess for k in shared])
    b = np.array([decided[k].excess for k in shared])
    return float(paired_permutation_p(a, b, clusters=clusters))


def outcome(judged: Judged, corrected_p: float, suspicion: Suspicion) -> tuple[Outcome, str | None]:
    """The word for what was found, and for anything but a plain "confirmed" the reason.

    An identity (an exact exponent, equal ids) proves a cause without a p-value as long as the replay does not object.
    Where all but the p-value holds, because the events are few, a cause that the record made likely stays likely.
    """
    if judged.reproduced < REPRODUCED and judged.noise > NOISE:  # False where nothing could be compared (nan)
        return "inconclusive", (
            f"the unchanged replay reproduced {percent(judged.reproduced)} of the pairs bitwise and differed by up to "
            f"{judged.noise:.2g}; without a baseline nothing can be proven"
        )
    base = np.array(judged.arms[0].excess)
    if not np.isfinite(base).all() or base.mean() <= 0:
        return "inconclusive", "the unchanged replay shows no excess to remove"
    removed = f"the intervention removed {percent(judged.removed)} of the excess; at least {percent(REMOVED)} is needed"
    if judged.removed != judged.removed:
        nothing = "at least half of the unchanged replays show no excess that it could remove"
        return "refuted", nothing if np.median(base) <= 0 else "a replay with the intervention was not finite"
    if judged.removed < REFUTED:
        return "refuted", removed
    if judged.removed < REMOVED:
        return "inconclusive", removed
    if suspicion.identity:
        return "confirmed", None
    if judged.placebo_change > PLACEBO_CHANGE:
        return "inconclusive", (
            f"a placebo changed the excess by {percent(judged.placebo_change)}; it may by {percent(PLACEBO_CHANGE)}"
        )
    if corrected_p > ALPHA:
        lacking = "more events would help"
        if suspicion.left_out is not None:
            lacking = f"left out for want of time: {suspicion.left_out}"
        short = f"p = {corrected_p:.2g} after Holm; at most {ALPHA} is needed ({lacking})"
        return ("likely" if suspicion.outcome == "likely" else "inconclusive"), short
    return "confirmed", None


def evidence(judged: Judged, corrected_p: float) -> tuple[Evidence, ...]:
    """The trials in words, observed beside expected."""
    n = judged.arms[0].n
    rows = [
        Evidence(
            statement="unchanged replays that are bitwise the record",
            observed="none could be compared"
            if judged.reproduced != judged.reproduced
            else f"{percent(judged.reproduced)}",
            expected="100 %",
        )
    ]
    decided = next(a for a in judged.arms if a.arm == "intervention")
    rows.append(
        Evidence(
            statement=f"share of the excess removed by: {decided.words} ({n} pairs)",
            observed=f"{percent(judged.removed)}",
            expected=f"0 % if this is not the cause, at least {percent(REMOVED)} if it is",
            p_value=corrected_p,
        )
    )
    rows += [
        Evidence(
            statement=f"share removed by the placebo: {arm.words}",
            observed=f"{percent(arm.share_removed)}",
            expected=f"within {percent(PLACEBO_CHANGE)} of 0",
        )
        for arm in judged.arms
        if arm.arm == "placebo" and arm.share_removed is not None
    ]
    return tuple(rows)
