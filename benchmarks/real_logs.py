"""What is said about logs of trainings that nobody here ran.

    WHYSPIKE_REAL_LOGS=FOLDER ./dev bench real_logs    # writes docs/benchmarks/real_logs.md

and the section of docs/scoreboard.md that holds what is known to be true of them against what is said.

The logs are not part of the project; tests/test_real_logs.py holds what is known to be true of them. No threshold was
chosen on them.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _knownlogs import renew

from whyspike.errors import WhySpikeError
from whyspike.logs.source import Source
from whyspike.pipeline import diagnose_all
from whyspike.readers import read_all

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "real_logs.md"
HEAD = """# Logs of trainings that nobody here ran

`WHYSPIKE_REAL_LOGS=FOLDER python benchmarks/real_logs.py` writes this page; the logs, published by others under
permissive licences, are not part of the project. `tests/test_real_logs.py` holds what is known to be true of each.

| log | read as | values | seconds | answer | notes |
|---|---|---|---|---|---|
"""


def main() -> None:
    folder = os.environ.get("WHYSPIKE_REAL_LOGS")
    if not folder:
        sys.exit("set WHYSPIKE_REAL_LOGS to the folder that holds the logs")
    rows = []
    for path in sorted(Path(folder).iterdir()):
        if path.name == "README.md":
            continue
        start = time.perf_counter()
        try:
            made = diagnose_all(path)
        except WhySpikeError as error:
            rows.append(f"| {path.name} | {_reader(path)} | | | {str(error).replace(folder + '/', '')} | |")
            continue
        took = time.perf_counter() - start
        for d in made:
            notes = ", ".join(n.id for n in d.run.notes)
            answer = f"{d.answer.status}{f' [{d.answer.cause}]' if d.answer.cause else ''}: {d.answer.sentence}"
            rows.append(f"| {path.name} | {d.run.reader} | {d.run.steps:,} | {took:.1f} | {answer} | {notes} |")
    PAGE.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(rows) + "\n")
    renew()


def _reader(path: Path) -> str:
    try:
        return read_all(Source(path))[0].reader
    except WhySpikeError:
        return "–"


if __name__ == "__main__":
    main()
