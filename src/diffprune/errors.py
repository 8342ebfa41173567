"""The exception tree: every mistake a user can make ends in one of these.

DiffpruneError
|-- OptionError     an option, an argument or a recipe is not valid (also a ValueError)
|-- ModelError      a model cannot be found, read or served
|   `-- ManifestError   a `pruning.json` is damaged or does not fit its weights
|-- PlanError       a plan is damaged or belongs to another model
|-- DataError       images cannot be found or read, or are too few
`-- FolderError     an output folder cannot be used or written
"""


class Interrupted(KeyboardInterrupt):
    """A stage has stopped in good order on a signal, its state saved: the same command goes on (no mistake)."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class DiffpruneError(Exception):
    """Base of all errors that say what was got, what was expected and what to do."""


class OptionError(DiffpruneError, ValueError):
    """An option, an argument or a recipe is not valid."""


class ModelError(DiffpruneError):
    """A model cannot be found, read or served."""


class ManifestError(ModelError):
    """A `pruning.json` is damaged or does not fit its config or weights."""


class PlanError(DiffpruneError):
    """A plan is damaged or belongs to another model."""


class DataError(DiffpruneError):
    """Images cannot be found or read, or are too few."""


class FolderError(DiffpruneError):
    """An output folder cannot be used or written."""
