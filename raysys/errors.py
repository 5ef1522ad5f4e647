"""Errors that a user can cause and mend.

The command line prints the message of a `RaysysError` as one line and exits with `exit_code`;
any other exception is a defect of ours and keeps its traceback.
"""


class RaysysError(Exception):
    """A fault in the input, the options or the environment; the message says what to do."""

    exit_code = 2


class DataError(RaysysError):
    """Bad data: the message names the file, the row and the column."""


class ConfigError(RaysysError):
    """An unknown or impossible option; the message names it and the nearest valid one."""


class ArtifactError(RaysysError):
    """A run folder or checkpoint that is damaged, incomplete or of another format."""


class ResumeError(RaysysError):
    """A run that cannot be continued with the code, config or data at hand."""


class MetricError(RaysysError):
    """Scores or labels for which a metric has no defined value."""


class StorageFullError(RaysysError):
    """No space left where the output should go; nothing half-written was kept."""
