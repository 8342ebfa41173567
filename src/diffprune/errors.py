"""The exception tree: every mistake a user can make ends in one of these.

DiffpruneError
|-- OptionError     an option, an argument or a recipe is not valid (also a ValueError)
|-- ModelError      a model cannot be found, read or pruned
|   `-- ManifestError   a `pruning.json` is damaged or does not fit its weights
|-- PlanError       a plan is damaged or belongs to another model
|-- DataError       images cannot be found or read, or are too few
`-- FolderError     an output folder cannot be used or written
"""


class Interrupted(KeyboardInterrupt):
    """Raised after a signal, once the state is saved: the same command resumes. Not an error."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class DiffpruneError(Exception):
    """Base class; the message states the value, what is supported, and what to do."""


class OptionError(DiffpruneError, ValueError):
    """An option, an argument or a recipe is not valid."""


class ModelError(DiffpruneError):
    """A model cannot be found, read or pruned."""


class ManifestError(ModelError):
    """A `pruning.json` is damaged or does not fit its config or weights."""


class PlanError(DiffpruneError):
    """A plan is damaged or belongs to another model."""


class DataError(DiffpruneError):
    """Images cannot be found or read, or are too few."""


class FolderError(DiffpruneError):
    """An output folder cannot be used or written."""
