"""Errors a user can act on: each says what is wrong, where, and what to do. The CLI prints them without a traceback."""

from __future__ import annotations


class RetinaNetError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(RetinaNetError):
    """A flag, a recipe key or a combination of settings that cannot be used."""


class DataError(RetinaNetError):
    """A dataset, an annotation file or an image that cannot be used."""


class ModelError(RetinaNetError):
    """A backbone or weights that cannot be built or found."""


class CheckpointError(RetinaNetError):
    """A checkpoint that cannot be read, written or resumed from."""


class NonFiniteLossError(RetinaNetError):
    """The loss became NaN or infinite; the message names the images of the batch."""


class PeerError(RetinaNetError):
    """Another process of the same training ended."""
