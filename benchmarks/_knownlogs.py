"""What is known to be true of logs that others published, and whether it is said: a section of the scoreboard.

The logs are not part of the project; WHYSPIKE_REAL_LOGS names their folder. Where it is not set, the section that
stands on the page is kept. No threshold was chosen on these logs.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scoreboard.md"
TITLE = "## Logs of trainings that nobody here ran"


@dataclass(frozen=True, kw_only=True)
class Known:
    """One log. What stands here must be said, and nothing else may be."""

    log: str
    truth: str
    status: str = "healthy"
    cause: str | None = None
    also: tuple[str, ...] = ()  # causes that may be named besides
    events: tuple[tuple[str, int], ...] = ()  # kind, and step (of a periodic event its period)
    notes: frozenset[str] = frozenset()
    says: tuple[str, ...] = ()  # patterns that answer or notes must hold
    of: int = -1  # which run of the file
    asked: dict[str, Any] = field(default_factory=dict)


KNOWN = (
    Known(
        log="yc1999-alpaca.trainer_state.json",
        truth="a staircase at steps 406 and 812, three epochs of 406.3 steps; harmless",
        cause="memorization-step",
        events=(("level-shift", 408), ("level-shift", 814)),
    ),
    Known(
        log="sherryxzhao-lora.trainer_state.json",
        truth="grouped by length: a period of 50 steps",
        cause="length-grouped",
        events=(("periodic", 50),),
        notes=frozenset({"averaged-values"}),
    ),
    Known(
        log="coralreef-whisper.trainer_state.json",
        truth="smooth; each value a mean of 50 steps",
        notes=frozenset({"averaged-values"}),
    ),
    Known(
        log="agndm-nanogpt-2.5-epochs.log.txt",
        truth="fixed order; one pass is 18,722 steps long",
        cause="fixed-order",
        events=(("periodic", 18_722),),
        says=(r"18,722 steps long",),
    ),
    Known(log="agndm-nanogpt-shuffled.log.txt", truth="one pass, smooth"),
    Known(
        log="macro1027-pinn-v18.metrics.csv",
        truth="one point from .045 to 125.8 and back, at step 16,149; its cause is in no log",
        status="unexplained",
        events=(("spike", 16_149),),
    ),
    Known(log="driemann-ml-aos.metrics.csv", truth="smooth; logged every 50 of 151 steps"),
    Known(
        log="bupt-detectron2.log.txt",
        truth="resumed at 70,019 after 72,559; the learning rate falls to a tenth at 60,000 and 80,000",
        notes=frozenset({"resume-overlap", "averaged-values", "lr-steps"}),
        says=(r"step 72,559 is followed by step 70,019", r"60,\d{3}", r"80,\d{3}|79,9\d\d"),
    ),
    Known(
        log="vv-cyclegan.loss_log.txt",
        truth="two players: the loss is no measure of progress; two runs in one file",
        also=("nonstationary-objective",),
        notes=frozenset({"appended-runs"}),
        says=(r"no measure of progress",),
    ),
    Known(log="trackio-wandb-export.csv", truth="a very clean pre-training", notes=frozenset({"sampled-values"})),
    Known(
        log="antoniolopardo-olmo.training.log",
        truth="flat; killed, with a traceback at the end",
        notes=frozenset({"truncated-tail"}),
        says=(r"ends in a traceback",),
    ),
    Known(
        log="brats-keras.csvlogger.csv",
        truth="one value for each of 24 epochs; the learning rate is cut at epochs 4, 8 and 13",
        status="cannot-say",
        notes=frozenset({"epoch-only", "lr-steps"}),
        says=(r"inside an epoch cannot be told",),
    ),
    Known(log="torchtitan-llama3.losses.txt", truth="smooth"),
    Known(log="megatron-golden.values.json", truth="resumed half-way as it should be: nothing to see"),
    Known(
        log="janosh-duplicate-steps",
        truth="steps logged twice, of a metric that is no loss",
        asked={"loss": "dup_steps/foo"},
        notes=frozenset({"resume-overlap"}),
    ),
)


def judged(known: Known, folder: Path) -> tuple[str, list[str], list[str]]:
    """The answer, what was not said of what is true, and what was said of what is not."""
    from whyspike.logs.assemble import Asked
    from whyspike.pipeline import diagnose_all

    made = diagnose_all(folder / known.log, Asked(**known.asked))[known.of]
    texts = " ".join((made.answer.sentence, *(n.text for n in made.run.notes)))
    found = [(e.kind, e.period if e.kind == "periodic" else e.step) for e in made.events]
    notes = {n.id for n in made.run.notes}
    causes = [v.cause for v in made.verdicts if v.outcome in ("likely", "confirmed")]
    missed = [f"{kind} at {at:,}" for kind, at in known.events if (kind, at) not in found]
    missed += [f"note {n}" for n in sorted(known.notes - notes)]
    missed += [f"words {p!r}" for p in known.says if not re.search(p, texts)]
    if made.answer.status != known.status:
        missed.append(known.status)
    if known.cause not in (None, made.answer.cause):
        missed.append(known.cause)
    false = [f"{kind} at {at:,}" for kind, at in found if (kind, at) not in known.events]
    false += [f"note {n}" for n in sorted(notes - known.notes)]
    false += [c for c in dict.fromkeys(causes) if c not in (known.cause, *known.also)]
    return made.answer.sentence, missed, false


def section() -> str:
    """The section as Markdown: written anew where the logs are, else as it stands on the page."""
    folder = os.environ.get("WHYSPIKE_REAL_LOGS")
    if not folder or not Path(folder).is_dir():
        return standing(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else ""
    rows, right = [], 0
    for known in KNOWN:
        if not (Path(folder) / known.log).exists():
            continue
        said, missed, false = judged(known, Path(folder))
        right += not missed and not false
        rows.append(
            f"| {known.log} | {known.truth} | {_cell(said)} | {'all' if not missed else 'not: ' + ', '.join(missed)} | "
            f"{', '.join(false) or 'nothing'} |"
        )
    return "\n".join(
        [
            TITLE,
            "",
            f"Of {right} of {len(rows)} logs all is said that is known, and nothing that is false: an event, a note or "
            "a cause that the log does not have. The logs, published by others under permissive licences, are not part "
            "of the project; `WHYSPIKE_REAL_LOGS=FOLDER ./dev bench real_logs` writes this section again.",
            "",
            "| log | known to be true | answer | said of it | false |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def standing(page: str) -> str:
    """The section of a page that was written before; empty where it has none."""
    found = re.search(rf"^{re.escape(TITLE)}$.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found[0].strip() if found else ""


def renew() -> None:
    """Put the section into the page that stands, before the last one."""
    page, made = PAGE.read_text(encoding="utf-8"), section()
    old = standing(page)
    if old:
        page = page.replace(old, made)
    else:
        page = page.replace("## How it is scored", f"{made}\n\n## How it is scored")
    PAGE.write_text(page, encoding="utf-8")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
