"""The settings of the server: limits on what clients send, and how requests form batches."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from retinanet.decode_config import LowestScore, require_lowest_score
from retinanet.errors import ConfigError
from retinanet.machine import cores


@dataclass(frozen=True)
class Limits:
    """Limits on what clients send and on what waits. Requests beyond them are refused, not delayed."""

    requests: int = 64
    """Requests that may wait for the network or be computed at the same time. More are answered with 429."""
    megabytes: float = 32.0
    """Largest upload in MB (10⁶ bytes). Larger ones are answered with 413."""
    queue_megabytes: float = 256.0
    """MB (10⁶ bytes) of all uploads that are received, wait or are computed. More are answered with 429."""
    megapixels: float = 50.0
    """Largest image in megapixels, checked before the image is decoded. Larger ones are answered with 413. Decoding
    takes up to 14 bytes of memory per pixel."""
    queue_megapixels: float = 200.0
    """Megapixels of all images that wait or are computed. More are answered with 429."""
    detections: int = 10_000
    """Largest max_detections that a request may ask for."""
    tiles: int = 256
    """Most tiles that a request may divide its image into."""
    connections: int = 512
    """Open connections. More are answered with 503 and closed."""
    seconds: float = 30.0
    """Seconds from the end of the upload until the answer. A request that takes longer is dropped and answered with
    503."""
    upload_seconds: float = 10.0
    """Seconds that an upload may take at any size. Larger uploads have one more second for each 100 kB."""
    idle_seconds: float = 10.0
    """Seconds until a connection ends on which no request arrives completely or no answer is read."""

    def __post_init__(self) -> None:
        for each in fields(self):
            if not 0 < getattr(self, each.name) < 1e9:
                raise ConfigError(f"--limits.{each.name.replace('_', '-')} must be above 0 and below 10⁹")
        if self.queue_megabytes < self.megabytes or self.queue_megapixels < self.megapixels:
            raise ConfigError(
                "--limits.queue-megabytes and --limits.queue-megapixels must not be below the limits of one image"
            )


@dataclass(frozen=True)
class ServeSettings:
    """How the server answers requests."""

    score: LowestScore = 0.3
    """Lowest score reported, 0 to 1, unless a request gives another. auto: of each model, the threshold with the best
    F1 on val, which a training stores in the weights."""
    batch: int = 8
    """Largest number of images that go through the network together."""
    wait_ms: float = 4.0
    """Milliseconds that an image waits for others to share its batch, if other images are being decoded."""
    decoders: int = field(default_factory=lambda: max(2, min(8, cores())))
    """Threads that decode images beside the network."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        require_lowest_score(self.score)
        if self.batch < 1 or self.decoders < 1:
            raise ConfigError(f"--batch is {self.batch} and --decoders {self.decoders}; both must be at least 1")
        if not 0 <= self.wait_ms <= 1000:
            raise ConfigError(f"--wait-ms is {self.wait_ms}; it must lie between 0 and 1000")
