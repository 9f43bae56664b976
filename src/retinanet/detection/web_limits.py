"""Limits of downloads, apart from the code that needs them: importing it takes a tenth of a second."""

from __future__ import annotations

from dataclasses import dataclass

from retinanet.errors import ConfigError


@dataclass(frozen=True)
class WebLimits:
    """Limits of a download."""

    megabytes: float = 100.0
    """Size of the largest file that is downloaded, in megabytes (1,000,000 bytes)."""
    seconds: float = 60.0
    """Longest time that a download may take in all, in seconds."""

    def __post_init__(self) -> None:
        if not (0 < self.megabytes < 1e6 and 0 < self.seconds < 1e6):
            raise ConfigError(
                f"web.megabytes is {self.megabytes:g} and web.seconds {self.seconds:g}; both must be above 0 and finite"
            )
