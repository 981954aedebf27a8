"""Errors that a person can act on: what was given, what is needed, what to write."""

from __future__ import annotations


class WhySpikeError(Exception):
    """The base of every error that whyspike raises on purpose. `exit_code` is what the command line returns."""

    exit_code = 2


class UnreadableRun(WhySpikeError):
    """A folder or file does not hold a run that can be read."""


class NotReplayable(WhySpikeError):
    """A training cannot be replayed: something that the replay needs was not recorded or not given."""


class BadTraining(WhySpikeError):
    """A `Training`, or what builds it, cannot be used as it is."""


class UnknownCause(WhySpikeError):
    """No cause of that name is in the catalogue."""


class UnknownCase(WhySpikeError):
    """No case of that name is in the catalogue."""


class UnknownTracker(WhySpikeError):
    """A diagnosis was to be logged to something that is no tracker that we know."""


class OutputExists(WhySpikeError):
    """The file to write is there already."""
