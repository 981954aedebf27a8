"""The one sentence: what the verdicts mean for the person who asked."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, isfinite

import numpy as np

from whyspike import beside
from whyspike.cause import Observation, catalogue, is_on_last_batch
from whyspike.form import factor, percent
from whyspike.logsigns import of_log, shape_of
from whyspike.types import SURER, Answer, Event, Verdict

EXACT = 0.05  # an exponent further from 0 is no mean (benchmarks/exponent.py: exact to rounding, .03 for mean of means)
OF_NOTHING = 1e9  # times: the level was no loss to speak of
RECORD_IT = (
    " A log does not hold what would tell the cause. Three lines record it: `with whyspike.watch(model, optimizer) as "
    "rec:`, `for batch in rec.batches(loader):`, and `rec.step(loss)` after the update."
)
LEAST_STEPS = 32  # fewer steps than that show neither a level nor a spike above it


def precedence(verdict: Verdict, rank: int) -> tuple[int, int, int]:
    """What verdicts are sorted by, the answer first.

    The surer comes first; then what needs doing before what does not, and what an event shows before what none does;
    then roots before what they set off.
    """
    place = 2 if verdict.harm == "none" else int(verdict.silent)
    return SURER[verdict.outcome], place, rank


def answer(seen: Observation, verdicts: Sequence[Verdict]) -> Answer:
    """The answer to "why does my training loss spike?", from verdicts that are sorted."""
    top = verdicts[0] if verdicts and verdicts[0].outcome in ("confirmed", "likely") else None
    explained = {e for v in verdicts if v.outcome in ("confirmed", "likely") for e in v.events}
    open_ = [e for e in seen.events if e.id not in explained]
    by_epoch = any(note.id == "epoch-only" for note in seen.run.notes)
    if by_epoch and top is None and not open_:
        return Answer(status="cannot-say", cause=None, harm=None, sentence=_by_epoch(seen))
    if len(seen.run) < LEAST_STEPS and not (top and top.silent):
        return Answer(
            status="cannot-say",
            cause=None,
            harm=None,
            sentence=f"The record has {len(seen.run)} steps; at least {LEAST_STEPS} are needed to tell a spike "
            "from a level.",
        )
    if top is None and not open_:
        return Answer(status="healthy", cause=None, harm=None, sentence=_healthy(seen))
    if top is not None:
        cause = catalogue()[top.cause]
        events = [e for e in seen.events if e.id in top.events]
        parts = [cause.sentence(seen, events), _harm(top, events), _proof(top, seen)]
        if not seen.events and top.harm == "none":  # what is worth knowing of a run in which nothing is wrong
            parts = [_healthy(seen), cause.sentence(seen, events), "This is expected and does no harm."]
        if open_:
            parts.append(f"{_count(len(open_), 'event' if top.silent else 'other event')} not explained by it.")
        status = "healthy" if top.harm == "none" and not open_ else "explained"
        return Answer(status=status, cause=top.cause, harm=top.harm, sentence=" ".join(p for p in parts if p))
    return Answer(status="unexplained", cause=None, harm=None, sentence=_unexplained(seen, open_, verdicts))


def _healthy(seen: Observation) -> str:
    size = f" in mini-batches of {seen.run.batch_size} samples" if seen.run.batch_size else ""
    every = seen.run.facts.get("logged_every")
    thinned = isinstance(every, int) and int(seen.run.step[-1] - seen.run.step[0]) >= 2 * len(seen.run)
    steps = f"{len(seen.run):,} logged values" if thinned else f"{len(seen.run)} steps"
    said = f"Nothing is wrong: over {steps}{size}, the loss shows no spike, dip or shift beyond its own noise."
    if seen.run.facts.get("objective"):
        said += (
            " But the objective moves by itself (two players, or a policy), so that its loss is no measure of progress."
        )
    if seen.exponent is not None and abs(seen.exponent.alpha) > EXACT:
        said += (
            f" But it depends on the batch size (exponent {seen.exponent.alpha:+.2f}, 0 for a mean), and so does the "
            "right learning rate."
        )
    return said + _nothing_repeats(seen)


def _nothing_repeats(seen: Observation) -> str:
    """Which periods were tested, and what would have been found: silence says nothing without its power."""
    tested = [r for r in seen.periods if all(map(isfinite, r.detectable))]
    if not tested:
        return ""
    names = ", ".join(f"{' or '.join(r.origins)} ({r.period} steps)" for r in tested)
    spike, wave = (factor(exp(max(limits))) for limits in zip(*(r.detectable for r in tested), strict=True))
    found = f"a spike of {spike} at each return, or a wave of {wave} from trough to peak, would have been found"
    return f" Nothing repeats with {names}; {found}."


def not_told_apart(seen: Observation, verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """The periodic events whose period has several origins, unless an experiment or an identity has settled it."""
    from whyspike.periods import origins

    settled = {e for v in verdicts if v.outcome == "confirmed" for e in v.events}
    made = []
    for event in seen.events:
        names = origins(seen.run, event) if event.kind == "periodic" and event.id not in settled else ()
        if len(names) > 1:
            made.append(
                f"whether event {event.id} comes from {' or from '.join(names)}: in this run all come every "
                f"{event.period} steps; change one of the intervals and run again"
            )
    return tuple(made)


def _by_epoch(seen: Observation) -> str:
    return (
        f"The log has one value for each of {len(seen.run)} epochs, and no epoch stands out; what happens inside an "
        "epoch cannot be told from it: log the loss of every step."
    )


def _proof(verdict: Verdict, seen: Observation) -> str:
    decided = next((a for a in verdict.arms if a.arm == "intervention"), None)
    if decided is None or decided.share_removed is None:
        if verdict.outcome == "confirmed":
            return ""
        if of_log(seen.run):
            return f"The log makes this likely. What would decide it: {catalogue()[verdict.cause].decides}."
        if verdict.reason:
            return f"The record makes this likely. It is not proven: {verdict.reason}."
        return "The record makes this likely; a replay would prove it."
    placebo = next((a for a in verdict.arms if a.arm == "placebo" and a.share_removed is not None), None)
    beside = f"; a placebo, {percent(placebo.share_removed or 0.0)}" if placebo is not None else ""
    word = "Proof" if verdict.outcome == "confirmed" else "Sign"
    return f"{word}: with {decided.words}, replays lose {percent(decided.share_removed)} of the excess{beside}."


def _harm(verdict: Verdict, events: Sequence[Event]) -> str:
    if verdict.harm == "none":
        return "This is expected and does no harm."
    states = [e.state for e in events if e.state is not None and np.isfinite(e.state)]
    if verdict.harm == "damaging":
        worst = max(states, default=0.0)  # of the replay, which need not have the event
        times = f"{worst:.2g} times its level" if worst < OF_NOTHING else "a height from next to nothing"
        shown = f": the loss on fixed samples rises to {times}" if worst >= 1.1 else ""
        return f"It damages the network{shown}."
    if verdict.silent:
        return "No event of this loss shows it."
    if not states and not verdict.arms:
        return "Whether the network moves with it, this record does not say."
    return "Only the plotted number moves; the network does not."


def _unexplained(seen: Observation, open_: Sequence[Event], verdicts: Sequence[Verdict]) -> str:
    highest = max(open_, key=lambda e: e.reported or 0.0)
    height = f", the highest {highest.reported:.3g} times its level" if highest.reported else ""
    tried = [v.cause for v in verdicts if v.outcome in ("inconclusive", "untested")]
    hint = f" Not decided: {', '.join(tried)}." if tried else ""
    if of_log(seen.run):
        hint += f" {words}" if (words := shape_of(seen.run, highest)) else ""
        hint += RECORD_IT
    if len(open_) == 1 and (pattern := _pattern(seen, open_[0])):
        return f"{pattern} is not explained (first at step {open_[0].step}{height}).{hint}"
    known = beside.sentence(seen, open_)
    if known.startswith("The first value"):
        return f"{known}{hint}"
    said = f"{_count(len(open_), 'event')} not explained (first at step {open_[0].step}{height})."
    return f"{said}{f' {known}' if known else ''}{hint}"


def _pattern(seen: Observation, event: Event) -> str:
    """What a periodic event is, in words; empty for another one."""
    if event.kind != "periodic" or not event.period:
        return ""
    what = "wave" if event.is_wave else "dip" if (event.reported or 2.0) < 1 else "spike"
    if event.period != seen.run.steps_per_epoch:
        return f"A {what} every {event.period} steps"
    at = ", on the last step of each" if is_on_last_batch(seen.run, event) and not event.is_wave else ""
    return f"A {what} once per epoch (every {event.period} steps{at})"


def _count(n: int, noun: str, *, verb: bool = True) -> str:
    tail = (" is" if n == 1 else " are") if verb else ""
    return f"{n} {noun}{'s' if n != 1 else ''}{tail}"
