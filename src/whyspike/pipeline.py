"""The stages composed: from a record, a live recorder or a training to a `Diagnosis`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from whyspike import answer as answers
from whyspike import beside
from whyspike.allowance import LEAST_PROBE, PROBING, REPRODUCING, Allowance
from whyspike.case import PLAIN, Build, Log, Loop, Vary
from whyspike.cause import Cause, Observation, ScratchCure, catalogue
from whyspike.errors import NotReplayable, UnreadableRun, WhySpikeError
from whyspike.observe import observe
from whyspike.suspect import likely_first, suspect
from whyspike.training import Training
from whyspike.types import Diagnosis, Evidence, Harm, Note, Outcome, Run, RunInfo, Suspicion, Trial, Verdict

if TYPE_CHECKING:
    from whyspike.arms import ScriptSource
    from whyspike.case import Case
    from whyspike.experiment import Experiment
    from whyspike.judge import Judged
    from whyspike.logs.assemble import Asked
    from whyspike.record import Recorder
    from whyspike.replay import Subject

Progress = Callable[[str, float], None]
Again = Callable[[Observation, Sequence[Suspicion]], tuple[tuple[Suspicion, ...], dict[str, tuple[Trial, ...]]]]


def diagnose(
    path: str | Path,
    *,
    loss: str | None = None,
    steps_per_epoch: float | None = None,
    batch_size: int | None = None,
    dataset_size: int | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Diagnose a recorded run, or a log that another tool wrote; of several runs in it the last one.

    No code of the training is executed; experiments stored in a recorded run are used.

    Args:
        path: a file or folder; "-" is standard input.
        loss: the column of the log that holds the loss.
        steps_per_epoch: optimizer updates in an epoch, where the log does not say.
        batch_size: samples in an update.
        dataset_size: samples in an epoch.

    Raises:
        UnreadableRun: the path does not hold a run that can be read.
    """
    from whyspike.logs.assemble import Asked

    asked = Asked(loss=loss, steps_per_epoch=steps_per_epoch, batch_size=batch_size, dataset_size=dataset_size)
    return diagnose_all(path, asked, progress=progress)[-1]


def diagnose_all(
    path: str | Path,
    asked: Asked | None = None,
    *,
    left_out: list[UnreadableRun] | None = None,
    progress: Progress | None = None,
) -> tuple[Diagnosis, ...]:
    """Diagnose every run that a file or folder holds, in its order.

    Args:
        left_out: gets what is said of logs in a folder that could not be read, beside others that could.

    Raises:
        UnreadableRun: the path does not hold a run that can be read.
    """
    from whyspike import runfolder
    from whyspike.logs.source import Source
    from whyspike.readers import read_all

    runs = read_all(Source.stdin() if str(path) == "-" else Source(Path(path)), asked, left_out)
    if len(runs) == 1:
        stored = runfolder.read_diagnosis(Path(path), steps=len(runs[0]))
        if stored is not None:
            return (replace(stored, record=runs[0], trials=runs[0].trials),)
    made = []
    for number, run in enumerate(runs):
        if progress and len(runs) > 1:
            progress(f"run {number + 1} of {len(runs)}", number / len(runs))
        seen = observe(run, None, progress)
        made.append(_conclude(seen, suspect(seen), {}))
    return tuple(made)


def diagnose_recorder(
    recorder: Recorder,
    *,
    prove: bool = False,
    full: bool = False,
    again: Again | None = None,
    most_s: float | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Diagnose what a recorder holds, with the model and the data at hand.

    With `prove`, the steps around the events are replayed; the user's model, optimizer and random generators are put
    back bitwise. The trials are stored in the run folder.

    Args:
        again: makes the trials of some suspicions by running the whole training again, where nothing can be replayed.
        most_s: replays take no longer than this; None leaves it to the allowance.
    """
    from whyspike import runfolder
    from whyspike.readers import read
    from whyspike.replay import Subject
    from whyspike.tapedloss import TapedLoss

    recorder.flush()
    if recorder.path is None:
        raise UnreadableRun(
            "nothing has been recorded: call rec.step(loss) once per update inside `with whyspike.watch(...) as rec:`, "
            "and leave WHYSPIKE_DISABLE unset"
        )
    run = read(recorder.path)
    trials: dict[str, tuple[Trial, ...]] = {}
    with recorder.paused():  # the replays pass through the same seams
        allowance = Allowance(inf if full else recorder.training_s, most_s=inf if most_s is None else most_s)
        subject, said = Subject.of(recorder, run), ()
        if subject is not None and isinstance(recorder.loss_fn, TapedLoss):
            subject, said = _trusted(subject, progress)
        seen = observe(run, subject, progress, thrifty=prove and allowance.thrifty)
        seen = replace(seen, missing=(*seen.missing, *said))
        allowance.of_events(len(seen.events))
        # Where time is short the unchanged replays of the events say it by themselves.
        if prove and subject is not None and seen.replayable and not (allowance.thrifty and seen.events):
            seen = _run_again(seen, subject, progress, allowance)
        if prove and subject is not None and seen.replayable and seen.events:
            if allowance.thrifty:
                subject.lighten(PROBING * recorder.training_s / max(1, len(run)), LEAST_PROBE)
            seen, suspicions, trials = _experiment(seen, subject, progress, allowance, full=full)
            runfolder.append_trials(recorder.path, [t for made in trials.values() for t in made])
        else:
            suspicions = suspect(seen)
            if prove and again is not None and seen.events:
                suspicions, trials = again(seen, suspicions)
                runfolder.append_trials(recorder.path, [t for made in trials.values() for t in made])
    made = _conclude(seen, suspicions, trials)
    runfolder.write_diagnosis(recorder.path, made)
    return made


def prove(
    source: Training | Callable[..., Training],
    *,
    seed: int = 0,
    path: str | Path | None = None,
    target: str | None = None,
    budget: float | None = None,
    verify_cures: bool = True,
    full: bool = False,
    progress: Progress | None = None,
) -> Diagnosis:
    """Train, record, diagnose, prove by replay, and verify the cures from scratch.

    Args:
        source: a `Training`, or a function that builds one; cures are verified only with a function, because a
            second training needs a fresh start.
        path: the run folder; `whyspike-runs/<model>-<time>` when not given.
        target: how the command line names the source; kept in the run, so that the run can be proven again.
        budget: minutes; cures that would take longer are not trained and stay unverified.
        full: replay with every change that there is, to see what each removes.

    Raises:
        BadTraining: the training cannot be run; the message says why.
    """
    import time

    from whyspike import cost, runfolder
    from whyspike.record import watch
    from whyspike.rerun import train_recorded
    from whyspike.training import build

    started = time.monotonic()
    if progress and callable(source):
        expected = cost.estimate(build(source, seed), cures=verify_cures)
        if expected:
            progress(expected, 0.0)
    training = build(source, seed)
    recorder = watch(
        training.model,
        training.optimizer,
        loss_fn=training.loss_fn,
        scheduler=training.scheduler,
        path=path,
        closely=True,
    )
    if target is not None:
        recorder.facts["target"] = target
    with recorder as rec:
        train_recorded(training, rec, progress)
    took = time.monotonic() - started
    made = diagnose_recorder(recorder, prove=True, full=full, progress=progress)
    left = None if budget is None else budget * 60 - (time.monotonic() - started)
    if verify_cures and callable(source) and recorder.path is not None:
        made = verified(made, source, took, left, progress)
        runfolder.write_diagnosis(recorder.path, made)
    return made


def take(
    build: Build, *, seed: int = 0, vary: Vary = PLAIN, verify_cures: bool = True, progress: Progress | None = None
) -> Diagnosis:
    """Train what a case builds on one thread, and take it through all stages.

    A `Training` is proven and its cures are trained; a `Loop` is recorded, diagnosed and proven; a `Log` is diagnosed.
    """
    import torch

    from whyspike.record import watch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a bitwise replay, and a result that does not depend on the machine
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            made = build(seed, vary)
            if isinstance(made, Log):
                path.mkdir()
                return diagnose(made.write(path), progress=progress)
            if isinstance(made, Loop):
                recorder = watch(
                    made.model,
                    made.optimizer,
                    loss_fn=made.loss_fn,
                    scheduler=made.scheduler,
                    scaler=made.scaler,
                    path=path,
                    closely=True,
                )
                if progress:
                    progress("training", 0.0)
                with recorder as rec:
                    made.body(rec)
                return diagnose_recorder(recorder, prove=True, progress=progress)

            def afresh(seed: int = seed) -> Training:
                again = build(seed, vary)
                assert isinstance(again, Training), "a case builds the same kind of thing for every seed"
                return again

            return prove(afresh, seed=seed, path=path, verify_cures=verify_cures, progress=progress)
    finally:
        torch.set_num_threads(threads)


def demo(case: Case, *, healthy: bool = False, seed: int = 0, progress: Progress | None = None) -> Diagnosis:
    """Take a case, or its healthy twin, through all stages."""
    made = take(case.healthy if healthy else case.sick, seed=seed, progress=progress)
    name = f"{case.name}{' (healthy twin)' if healthy else ''}"
    return replace(made, run=replace(made.run, source=name))


# --------------------------------------------------------------------------- the stages behind


def _trusted(subject: Subject, progress: Progress | None) -> tuple[Subject | None, tuple[str, ...]]:
    """The subject with those windows alone in which the script's taped loss gives bitwise the record."""
    from whyspike.tapedloss import TapedLoss, trusted

    n = len(subject.run.capsules)
    stay, reason = trusted(subject, progress)
    assert isinstance(subject.loss_fn, TapedLoss)
    subject.loss_fn.carried = (stay, n)
    if not stay:
        return None, (f"replays: the tape of the script's loss is not the script ({reason or 'no step was kept'})",)
    if stay < n:
        return subject, (f"{n - stay} of {n} stretches of the run: there the tape is not the script ({reason})",)
    return subject, ()


def _run_again(seen: Observation, subject: Subject, progress: Progress | None, allowance: Allowance) -> Observation:
    """Whether recorded windows come out once more, unchanged."""
    from whyspike.reproduction import SECONDS, look

    if progress:
        progress("running recorded steps again, unchanged", 0.0)
    with subject.kept():
        return replace(seen, reproductions=look(subject, seen.events, min(SECONDS, REPRODUCING * allowance.whole)))


def _experiment(
    seen: Observation, subject: Subject, progress: Progress | None, allowance: Allowance, *, full: bool = False
) -> tuple[Observation, tuple[Suspicion, ...], dict[str, tuple[Trial, ...]]]:
    """Learn the events' heights in the network by unchanged replays, then run the trials of every open suspicion."""
    from whyspike.experiment import DECIDING, LEAST_PAIRS, Experiment

    causes = catalogue()
    trials: dict[str, tuple[Trial, ...]] = {}
    with subject.kept():
        experiment = Experiment(subject, seen, full=full, allowance=allowance)
        experiment.measure_states(progress)
        seen = experiment.profile(progress)
        if experiment.thrifty:
            return _screened(experiment, subject, causes, progress)
        suspicions = []
        found = suspect(seen)
        n_open = sum(s.outcome != "refuted" for s in found)
        if not allowance.fits(n_open * DECIDING * LEAST_PAIRS * experiment.per_replay):  # what is likely comes first
            found = likely_first(found)
        for suspicion in found:
            tried = suspicion
            if suspicion.outcome != "refuted":
                n_open -= 1
                try:
                    trials[suspicion.cause] = experiment.trials(
                        causes[suspicion.cause], suspicion, progress, waiting=n_open
                    )
                except NotReplayable as error:
                    tried = _without_trials(suspicion, str(error))
            suspicions.append(tried)
    return seen, tuple(suspicions), trials


def _without_trials(suspicion: Suspicion, why: str) -> Suspicion:
    reasons = (suspicion.reason, f"the experiment does not apply here: {why}")
    return replace(suspicion, reason="; ".join(r for r in reasons if r))


def _screened(
    experiment: Experiment, subject: Subject, causes: Mapping[str, Cause], progress: Progress | None
) -> tuple[Observation, tuple[Suspicion, ...], dict[str, tuple[Trial, ...]]]:
    """As `_experiment`, of a training whose replays are dear."""
    from whyspike.reproduction import SECONDS, look, of_replays
    from whyspike.screening import Screening

    seen = experiment.seen
    found = of_replays(experiment.replays.all_unchanged) or look(
        subject, seen.events, min(SECONDS, REPRODUCING * experiment.allowance.whole)
    )
    seen = experiment.seen = replace(seen, reproductions=found)
    suspicions = suspect(seen)
    screening = Screening(experiment, causes, progress)
    trials = screening.trials(suspicions)
    tried = []
    for s in suspicions:
        why = screening.reasons.get(s.cause)
        known = s if why is None else _without_trials(s, why)
        tried.append(replace(known, left_out=screening.left_out.get(s.cause)))
    said = (f"{cause}: {words}" for cause, words in screening.left_out.items())
    return replace(seen, missing=(*seen.missing, *said)), tuple(tried), trials


def _conclude(
    seen: Observation,
    suspicions: Sequence[Suspicion],
    trials: Mapping[str, Sequence[Trial]],
) -> Diagnosis:
    """Judge, sort, and say it."""
    verdicts = _verdicts(seen, suspicions, trials)
    run = seen.run
    return Diagnosis(
        run=RunInfo(
            source=run.source,
            reader=run.reader,
            steps=len(run),
            steps_per_epoch=run.steps_per_epoch,
            signals=("loss", *(k for k in sorted(run.signals) if "/" not in k)),
            notes=(*run.notes, *_beside(run)),
        ),
        answer=answers.answer(seen, verdicts),
        events=seen.events,
        verdicts=verdicts,
        record=run,
        trials=tuple(t for made in trials.values() for t in made),
        missing=(*seen.missing, *answers.not_told_apart(seen, verdicts)),
    )


def _beside(run: Run) -> tuple[Note, ...]:
    """What the reader of the curve must know of, though it makes no spike."""
    from whyspike.overfitting import overfitting

    found = overfitting(run)
    return () if found is None else (found,)


def _verdicts(
    seen: Observation, suspicions: Sequence[Suspicion], trials: Mapping[str, Sequence[Trial]]
) -> tuple[Verdict, ...]:
    causes = catalogue()
    judged: dict[str, Judged] = {}
    corrected: dict[str, float] = {}
    if trials:
        from whyspike.judge import judge
        from whyspike.stats import holm

        judged = {k: j for k, made in trials.items() if (j := judge(made)) is not None}
        corrected = dict(zip(judged, map(float, holm([j.p_value for j in judged.values()])), strict=True))
    made = [_verdict(causes[s.cause], s, seen, judged, corrected, trials) for s in suspicions]
    return tuple(sorted(made, key=lambda v: answers.precedence(v, causes[v.cause].rank)))


def _verdict(
    cause: Cause,
    suspicion: Suspicion,
    seen: Observation,
    judged: Mapping[str, Judged],
    corrected: Mapping[str, float],
    trials: Mapping[str, Sequence[Trial]],
) -> Verdict:
    outcome: Outcome = suspicion.outcome
    reason = suspicion.reason
    evidence: tuple[Evidence, ...] = suspicion.evidence
    arms = ()
    events = suspicion.events
    result = judged.get(cause.id)
    if result is not None:
        from whyspike.judge import evidence as trial_evidence
        from whyspike.judge import outcome as trial_outcome

        outcome, reason = trial_outcome(result, corrected[cause.id], suspicion)
        evidence += trial_evidence(result, corrected[cause.id])
        evidence += tuple(cause.remarks(seen, trials[cause.id]))
        arms = result.arms
        if suspicion.alone and outcome != "confirmed":
            outcome, events, reason = "confirmed", (), f"it is at work, but no event comes from it: {reason}"
    elif suspicion.outcome == "likely" and suspicion.identity:
        outcome = "confirmed"
    if outcome in ("confirmed", "likely"):
        said = {e.statement for e in evidence}
        evidence += tuple(e for e in beside.evidence(seen, events) if e.statement not in said)
    return Verdict(
        cause=cause.id,
        outcome=outcome,
        harm=_harm(cause, suspicion, seen, events, trials.get(cause.id, ()) if events else ()),
        events=events,
        evidence=evidence,
        arms=arms,
        cures=tuple(c.cure for c in cause.cures(seen)) if outcome in ("confirmed", "likely") else (),
        reason=reason,
    )


def _harm(
    cause: Cause, suspicion: Suspicion, seen: Observation, events: Sequence[str], trials: Sequence[Trial]
) -> Harm:
    """none: expected behaviour; damaging: the network is worse by 10 % for three steps or more; else cosmetic."""
    if cause.harmless:
        return "none"
    if suspicion.harm is not None:
        return suspicion.harm
    base = [t for t in trials if t.arm == "baseline"]
    if base:
        lengths = sorted(
            sum(not s < 1.1 * t.state_reference for s in t.state[t.event_step - t.first_step :]) for t in base
        )
        return "damaging" if lengths[len(lengths) // 2] >= 3 else "cosmetic"
    states = [e.state for e in seen.events if e.id in events and e.state is not None]
    return "damaging" if any(s >= 1.1 for s in states) else "cosmetic"


def verified(
    made: Diagnosis,
    source: Callable[..., Training] | ScriptSource,
    seconds_per_training: float,
    seconds_left: float | None,
    progress: Progress | None,
) -> Diagnosis:
    """Verify the cures of the answer from scratch, if there is something to cure and time to do it.

    Args:
        seconds_left: None for any number.
    """
    from whyspike.verify import SEEDS, verify

    if not made.verdicts or made.answer.cause is None or made.answer.harm == "none":
        return made
    seen = Observation(run=made.record, events=made.events)  # type: ignore[arg-type]
    cures: Sequence[ScratchCure] = catalogue()[made.answer.cause].cures(seen)
    trainings = (len({c.make().words for c in cures if c.make}) + 1) * len(SEEDS)
    if seconds_left is not None and trainings * seconds_per_training > seconds_left:
        return replace(
            made,
            missing=(
                *made.missing,
                f"the cures from scratch: {trainings} trainings of {seconds_per_training:.0f} s do not fit the budget",
            ),
        )
    try:
        judged = verify(source, cures, progress=progress)
    except WhySpikeError as error:
        return replace(made, missing=(*made.missing, f"the cures from scratch: {error}"))
    first, *rest = made.verdicts
    return replace(made, verdicts=(replace(first, cures=judged), *rest))
