"""The recommender on sessions of your own: `whyspike prove examples/own_sessions.py:training`.

`sessions.csv` has one interaction a line, user, item and time, separated by commas, tabs or semicolons. Where it is not
there, it is written from the generator of the case, so that this file runs as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from whyspike import Training
from whyspike.cases._sessions import sessions, write_interactions
from whyspike.cases.gru_recommender import read_interactions, training_on

PATH = Path("sessions.csv")


def training(seed: int = 0, **how: Any) -> Training:
    """The recommender on the sessions of the file; `how` as `training_on` takes it (lr, epochs, hidden, …)."""
    if not PATH.is_file():
        write_interactions(PATH, sessions(6400, 500, seed=0))
    return training_on(read_interactions(PATH), seed, **how)
