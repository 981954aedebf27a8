"""What every report says, in the same words: the headline, where the events are, and which verdict belongs where."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from whyspike.form import count, factor, number, percent, plain
from whyspike.types import Arm, Cure, Diagnosis, Event, Verdict

HARM = {
    "none": "expected behaviour: nothing needs doing",
    "cosmetic": "in the plotted number only: the network is not hurt",
    "damaging": "the network itself is thrown back",
}
APPLICABILITY = {
    "safe": "changes nothing but the fault",
    "unsafe": "changes how the training goes",
    "manual": "needs something only you know",
}
KINDS = {
    "spike": ("spike", "spikes"),
    "dip": ("dip", "dips"),
    "level-shift": ("level shift", "level shifts"),
    "divergence": ("divergence", "divergences"),
    "non-finite": ("non-finite value", "non-finite values"),
    "periodic": ("periodic event", "periodic events"),
}


@dataclass(frozen=True)
class Sorted:
    """The verdicts of a diagnosis by the part they play in it."""

    answer: Verdict | None  # what explains the events, be it harmless; None where nothing does
    beside: tuple[Verdict, ...]  # other confirmed or likely causes, at work with the answer
    open: tuple[Verdict, ...]  # inconclusive
    refuted: tuple[Verdict, ...]
    untested: tuple[Verdict, ...]


def sort(diagnosis: Diagnosis) -> Sorted:
    """Give every verdict its part."""
    verdicts = diagnosis.verdicts
    answer = verdicts[0] if verdicts and verdicts[0].cause == diagnosis.answer.cause else None

    def of(*outcomes: str) -> tuple[Verdict, ...]:
        return tuple(v for v in verdicts if v is not answer and v.outcome in outcomes)

    rest = of("confirmed", "likely"), of("inconclusive"), of("refuted"), of("untested")
    return Sorted(in_own_words(answer, diagnosis) if answer else None, *rest)


# What a recorder of integrations/ calls its framework, and what its code is called in a cure.
CODES = {"keras": "keras", "lightning": "lightning", "transformers": "hf"}


def in_own_words(verdict: Verdict, diagnosis: Diagnosis) -> Verdict:
    """The verdict with the code of each cure in the framework of the run alone, where both are known; else torch's."""
    facts = diagnosis.record.facts if diagnosis.record is not None else {}
    name = CODES.get(str(facts.get("framework", "")).partition(" ")[0])
    if name is None:
        return verdict
    cures = []
    for cure in verdict.cures:
        own = name if name in cure.code else "torch"
        cures.append(replace(cure, code={own: cure.code[own]} if own in cure.code else cure.code))
    return replace(verdict, cures=tuple(cures))


def title(cause: str) -> str | None:
    """The headline of a cause in the catalogue; None for one that is not in it."""
    try:
        from whyspike.cause import find

        return find(cause).title or None
    except Exception:  # a report must come out even where a cause of someone else's cannot be loaded
        return None


def level(diagnosis: Diagnosis) -> str:
    """What the first line begins with: `confirmed[double-averaged-loss]`, `healthy`, `healthy[batch-size-noise]`."""
    verdict, status = sort(diagnosis).answer, diagnosis.answer.status
    if verdict is None:
        return status
    return label(verdict) if status == "explained" else f"{status}[{verdict.cause}]"


def label(verdict: Verdict) -> str:
    """`confirmed[double-averaged-loss]`."""
    return f"{verdict.outcome}[{verdict.cause}]"


def headline(diagnosis: Diagnosis) -> str:
    """The first line without its level: stands alone, without a full stop."""
    verdict = sort(diagnosis).answer
    text = title(verdict.cause) if verdict else None
    return plain(text or diagnosis.answer.sentence).rstrip(".")


def sentence(diagnosis: Diagnosis) -> str | None:
    """The answer's sentence, or None when the headline has said it already."""
    said = plain(diagnosis.answer.sentence)
    return None if said.rstrip(".") == headline(diagnosis) else said


def first_sentence(diagnosis: Diagnosis) -> tuple[str, str]:
    """The answer's first sentence, and what follows it."""
    first, _, rest = re.sub(r"(?<=[a-z0-9)%]\.) (?=[A-Z])", "\n", plain(diagnosis.answer.sentence), count=1).partition(
        "\n"
    )
    return first, rest


def headline_of(verdict: Verdict) -> str:
    """One line about a verdict: its reason, else the headline of its cause, else its strongest evidence."""
    if verdict.outcome in ("refuted", "untested", "inconclusive") and verdict.reason:
        return plain(verdict.reason)
    if text := title(verdict.cause):
        return text
    for seen in verdict.evidence:
        return plain(f"{seen.statement}: {seen.observed} (expected {seen.expected})")
    return plain(verdict.reason or verdict.cause.replace("-", " "))


# ------------------------------------------------------------------------------- events


def height(event: Event) -> float:
    """What an event is ranked by: the higher of its two factors, infinite for a non-finite one."""
    if event.kind == "non-finite":
        return math.inf
    known = [abs(math.log(h)) for h in (event.reported, event.state) if h is not None and h > 0]
    return max(known, default=0.0)


def counted(events: Iterable[Event]) -> str:
    """`10 spikes and 1 dip`."""
    counts: dict[str, int] = {}
    for event in events:
        counts[event.kind] = counts.get(event.kind, 0) + 1
    return " and ".join(f"{n} {KINDS[kind][n > 1]}" for kind, n in counts.items())


def rhythm(diagnosis: Diagnosis, events: tuple[Event, ...]) -> str | None:
    """How the events come back: `every 33 steps, on the last step of an epoch`."""
    epoch = diagnosis.run.steps_per_epoch
    periods = {e.period for e in events if e.period}
    starts = sorted(e.step for e in events)
    gaps = {b - a for a, b in pairwise(starts)}
    if len(periods) == 1:
        period = periods.pop()
    elif len(starts) >= 3 and len(gaps) == 1:
        period = gaps.pop()
    else:
        period = None
    places = {place_in_epoch(diagnosis, e) for e in events if not e.is_wave}  # a wave has no place
    at = None
    if epoch and len(places) == 1 and (place := places.pop()) is not None:
        if place in (0, epoch - 1):
            at = f"on the {'first' if place == 0 else 'last'} step of an epoch"
        elif len(starts) > 1 or period:
            at = f"on step {place + 1} of an epoch"
    if period == epoch and epoch:
        return ", ".join(filter(None, [f"once per epoch (every {period} steps)", at]))
    return ", ".join(filter(None, [f"every {period} steps" if period else None, at])) or None


def returns(event: Event) -> range:
    """The steps at which an event begins: one, or every return of a periodic one."""
    return range(event.step, event.last_step + 1, event.period) if event.period else range(event.step, event.step + 1)


def place_in_epoch(diagnosis: Diagnosis, event: Event) -> int | None:
    """Position of an event's first step in its epoch, from 0: as recorded, else counted from step 0."""
    record, epoch = diagnosis.record, diagnosis.run.steps_per_epoch
    if record is not None and record.index is not None and len(record):
        row = int(record.step.searchsorted(event.step))
        return int(record.index[row]) if row < len(record) and int(record.step[row]) == event.step else None
    return event.step % epoch if epoch else None


def where(diagnosis: Diagnosis, events: tuple[Event, ...]) -> str:
    """`10 spikes in 396 steps, once per epoch, every 33 steps; the highest at step 362`."""
    steps = f"in {count(diagnosis.run.steps)} steps"
    if len(events) == 1 and (event := events[0]).kind == "periodic" and event.period:
        what = "wave" if event.is_wave else "dip" if event.reported is not None and event.reported < 1 else "spike"
        parts = [f"a {what} that comes {len(returns(event))} times {steps}", rhythm(diagnosis, events)]
        return f"{', '.join(filter(None, parts))}; first at step {count(event.step)}"
    if not events:
        return f"{count(diagnosis.run.steps)} steps read from {plain(diagnosis.run.source)}"
    parts = f"{counted(events)} {steps}"
    if again := rhythm(diagnosis, events):
        parts += f", {again}"
    highest = max(events, key=height)
    at = f"step {count(highest.step)}"
    return f"{parts}; the highest at {at}" if len(events) > 1 else f"{parts}, at {at}"


def heights(events: tuple[Event, ...]) -> str | None:
    """`logged 15.9 x, in the network 9.1 x the median of the 64 steps before`, of the highest event."""
    if not events:
        return None
    event = max(events, key=height)
    parts = [(event.reported, logged(event)), (event.state, state(event))]
    known = [said for x, said in parts if x is not None and math.isfinite(x)]
    unknown = [said for x, said in parts if x is None or not math.isfinite(x)]
    if known:
        over = "from trough to peak" if event.is_wave else "the median of the 64 steps before"
        known = [f"{', '.join(known)} {over}"]
    return "; ".join(known + unknown)


def height_and_harm(diagnosis: Diagnosis) -> str | None:
    """The heights of the highest event, and what the answer means for the network; the latter alone without events."""
    verdict = sort(diagnosis).answer
    events = events_of(diagnosis, verdict)
    said = [heights(events), None if verdict is None else _harm(verdict, events)]
    return "; ".join(s for s in said if s) or None


def _harm(verdict: Verdict, events: tuple[Event, ...]) -> str:
    if verdict.silent and verdict.harm == "cosmetic":
        return "proven without an event: none of this loss shows it"
    if verdict.harm == "cosmetic" and not verdict.arms and all(e.state is None for e in events):
        return "whether the network is hurt is not known"
    return HARM[verdict.harm]


def logged(event: Event) -> str:
    """`logged 15.9 x`; a non-finite loss has no factor."""
    if event.reported is None and event.kind != "non-finite":
        return "logged height not known"
    return f"logged {factor(event.reported)}"


def state(event: Event) -> str:
    """`in the network 9.1 x`, by the loss on the probe set."""
    return f"in the network {factor(event.state)}" if event.state is not None else "in the network not known"


def events_of(diagnosis: Diagnosis, verdict: Verdict | None) -> tuple[Event, ...]:
    """The events of a verdict; all of them without one."""
    if verdict is None:
        return diagnosis.events
    return tuple(e for e in diagnosis.events if e.id in verdict.events)


def left_over(diagnosis: Diagnosis) -> tuple[Event, ...]:
    """The events that no confirmed or likely cause explains, where the answer explains others."""
    if sort(diagnosis).answer is None:
        return ()
    explained = {e for v in diagnosis.verdicts if v.outcome in ("confirmed", "likely") for e in v.events}
    return tuple(e for e in diagnosis.events if e.id not in explained)


def described(event: Event) -> str:
    """`level shift at steps 196 to 395, logged 2.1 x, in the network 1.2 x`."""
    first, last = count(event.step), count(event.last_step)
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    return f"{KINDS[event.kind][0]} at {steps}, {logged(event)}, {state(event)}"


# ------------------------------------------------------------------------------- arms and cures


UNIT = "excess in log-loss x steps"  # of Arm.excess, as excess.py measures it: per occurrence of a periodic event
WAVE_UNIT = "height of the pattern in nats, lowest to highest"  # of Arm.excess where whole epochs are replayed


def unit(verdict: Verdict | None) -> str:
    """What the excess of a verdict's arms is counted in."""
    from whyspike.cause import catalogue

    cause = catalogue().get(verdict.cause) if verdict is not None else None
    return WAVE_UNIT if cause is not None and cause.window == "epoch" else UNIT


def mean(arm: Arm) -> float | None:
    """Mean excess over the pairs; infinite when one of them did not stay finite, None without any."""
    known = [x for x in arm.excess if x is not None and not math.isnan(x)]
    return sum(known) / len(known) if known else None


def removed(arm: Arm) -> str | None:
    """`99 % (98 to 99 %)`: the share of the baseline's excess that an arm removed, with its 95 % interval."""
    if arm.share_removed is None or not math.isfinite(arm.share_removed):
        return None
    if arm.interval is None or not all(math.isfinite(x) for x in arm.interval):
        return percent(arm.share_removed)
    low, high = (percent(x).removesuffix(" %") for x in arm.interval)
    if low == high:
        return percent(arm.share_removed)
    return f"{percent(arm.share_removed)} ({low} to {high} %)"


def ordered(verdict: Verdict) -> tuple[tuple[Arm, ...], tuple[Arm, ...]]:
    """The arms that decide (baseline, the first intervention, placebo), and the other changes tried beside them."""
    first = decisive(verdict)
    three = [a for kind in ("baseline", "intervention", "placebo") for a in verdict.arms if a.arm == kind]
    deciding = tuple(a for a in three if a.arm != "intervention" or a is first)
    return deciding, tuple(a for a in verdict.arms if a.arm == "intervention" and a is not first)


def means(arms: Iterable[Arm]) -> list[str]:
    """The mean excess of each arm, all with the decimals that give the largest three digits."""
    found = [mean(a) for a in arms]
    largest = max((abs(x) for x in found if x is not None and math.isfinite(x)), default=0.0)
    if largest == 0 or not 0.01 <= largest < 1e6:
        return [number(x) for x in found]
    decimals = max(0, 2 - math.floor(math.log10(largest)))
    return [number(x) if x is None or not math.isfinite(x) else f"{x:,.{decimals}f}" for x in found]


def decisive(verdict: Verdict) -> Arm | None:
    """The intervention that decides: the first of them."""
    return next((a for a in verdict.arms if a.arm == "intervention"), None)


def verified(cure: Cure) -> str:
    """`safe, verified`: what may be said of a cure in two words."""
    tried = {True: "verified from scratch", False: "tried from scratch: does not cure", None: "not tried"}
    return f"{cure.applicability}, {tried[cure.verified]}"


def numbers(cure: Cure) -> str | None:
    """`3 seeds: events 30 -> 0, final probe loss 0.94 -> 0.092` from pairs of `name_before` and `name_after`."""
    given: Mapping[str, float] = cure.numbers or {}
    changes, others = [], []
    for name, value in given.items():
        stem = name.removesuffix("_after")
        if name.endswith("_before"):
            continue  # said with what came after; alone it says nothing about the cure
        if name.endswith("_after") and f"{stem}_before" in given:
            changes.append(f"{stem.replace('_', ' ')} {number(given[f'{stem}_before'])} -> {number(value)}")
        elif name != "seeds":
            others.append(f"{name.replace('_', ' ')} {number(value)}")
    said = ", ".join(changes + others)
    seeds = given.get("seeds")
    return f"{number(seeds)} {'seed' if seeds == 1 else 'seeds'}: {said}" if seeds and said else said or None
