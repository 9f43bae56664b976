"""Errors that a user can solve. A message states the problem, its place and the remedy, and is printed in one line."""

from __future__ import annotations


class RetinaNetError(Exception):
    """Base class of the errors of this package."""


class ConfigError(RetinaNetError):
    """An invalid flag, recipe key or combination of settings."""


class ArgumentError(ConfigError, ValueError):
    """A value given to a function of the package that is out of range or of the wrong shape."""


class DataError(RetinaNetError):
    """A dataset, an annotation file or an image that cannot be used."""


class ModelError(RetinaNetError):
    """A backbone or weights that cannot be built or found."""


class CheckpointError(RetinaNetError):
    """A checkpoint that cannot be read, written or resumed from."""


class MissingPackageError(RetinaNetError, ImportError):
    """A package that is not installed; the message names the extra that installs it."""


class ExportError(RetinaNetError):
    """A model that cannot be exported, or a file that does not agree with its model.

    Attributes:
        table: the differences, as text of several lines; empty if nothing was compared.
    """

    def __init__(self, message: str, table: str = "") -> None:
        super().__init__(message)
        self.table = table


class NonFiniteLossError(RetinaNetError):
    """The loss became NaN or infinite; the message names the images of the batch."""


class PeerError(RetinaNetError):
    """Another process of the same training ended or cannot be reached."""


class AbsentSplitError(DataError):
    """The folder or list of a split is not there."""
