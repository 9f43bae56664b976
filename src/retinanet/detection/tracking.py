"""ByteTrack (Zhang et al., arXiv 2110.06864): follow objects through the frames of a video.

The detections of a frame are divided by their score. Those with a high score are matched with all tracks, where each
track is expected to be by its velocity. Tracks that found no partner are then matched with the detections of low score:
an object that is partly hidden still gets a box, only with a low score. Detections with a high score that remain start
new tracks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from retinanet.detection.assignment import best_pairs
from retinanet.detection.motion import Bools, Floats, Ints, Motion
from retinanet.detections import Detections
from retinanet.errors import ArgumentError

# Id of a track that was seen in one frame only.
_TENTATIVE = -1


@dataclass(frozen=True)
class TrackSettings:
    """Settings of a :class:`Tracker`.

    Attributes:
        high: lowest score of a detection that can start a track (τ in the paper).
        low: lowest score of a detection that can continue a track.
        high_iou: lowest IoU of a track with a detection of high score.
        low_iou: lowest IoU of a track with a detection of low score. It is larger, because most of these detections
            are background.
        new_iou: lowest IoU of the first two detections of a track.
        keep_seconds: time in which an object that vanished gets its id again if it returns.
    """

    high: float = 0.3
    low: float = 0.05
    high_iou: float = 0.2
    low_iou: float = 0.5
    new_iou: float = 0.3
    keep_seconds: float = 1.0

    @classmethod
    def from_score(cls, score: float) -> Self:
        """Return the settings for a score threshold. The ratio of the two scores is that of the paper, 0.6 to 0.1."""
        return cls(high=score, low=score / 6)


@dataclass(frozen=True)
class Tracked:
    """The detections of a frame that belong to tracks.

    Attributes:
        found: the detections, with the boxes and scores that the detector gave; best first.
        ids: int64 ``(D,)``, the track of each detection, from 1. An id is never used again.
    """

    found: Detections
    ids: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Tracks:
    """T tracks: ``motion``, and ``ids``, ``labels`` and ``seen`` ``(T,)``, the time of the last detection in frames."""

    motion: Motion
    ids: Ints
    labels: Ints
    seen: Floats

    def take(self, rows: Ints | Bools) -> _Tracks:
        return _Tracks(self.motion.take(rows), self.ids[rows], self.labels[rows], self.seen[rows])

    def joined(self, other: _Tracks) -> _Tracks:
        return _Tracks(
            self.motion.joined(other.motion),
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.seen, other.seen]),
        )


class Tracker:
    """Gives the objects of a video ids that stay the same from frame to frame. Equal input gives equal ids.

    A new object gets its id in the second frame that shows it, so a false positive in a single frame gets none. The
    objects of the first frame get ids at once. Only detections of the same class form a track.

    Args:
        settings: thresholds.
        frame_rate: usual number of frames per second. The noise of the motion model is stated per frame.
    """

    def __init__(self, settings: TrackSettings | None = None, frame_rate: float = 30.0) -> None:
        if not 0 < frame_rate < np.inf:
            raise ArgumentError(f"frame_rate is {frame_rate}; give the number of frames per second, above 0")
        self.settings = settings or TrackSettings()
        self._rate = frame_rate
        self._count = 0  # ids given so far
        self._frame: float | None = None  # time of the last frame, in frames
        none = np.zeros(0, dtype=np.int64)
        self._tracks = _Tracks(Motion.start(np.zeros((0, 4))), none, none, np.zeros(0))

    def update(self, found: Detections, time: float | None = None) -> Tracked:
        """Match the detections of the next frame with the tracks.

        Args:
            found: all detections of the frame with a score of at least ``settings.low``.
            time: time of the frame in seconds. Unset: one frame after the last one.

        Returns:
            The detections that belong to tracks.

        Raises:
            ArgumentError: ``time`` is not later than the time of the last frame.
        """
        first, before, now = self._frame is None, self._frame, self._next_frame(time)
        boxes, labels = found.boxes.astype(np.float64), found.labels
        old = self._tracks
        lost = old.seen < (now if before is None else before)
        if before is not None:
            old = _Tracks(old.motion.predicted(now - before, lost), old.ids, old.labels, old.seen)
        partner = self._partners(old, lost, boxes, labels, found.scores)
        kept = self._continued(old, partner, boxes, now)
        alone = np.setdiff1d(np.flatnonzero(found.scores >= self.settings.high), partner)
        ids = np.full(len(found), _TENTATIVE)
        ids[partner[partner >= 0]] = kept.ids[kept.seen == now]
        if first:
            ids[alone] = self._new_ids(len(alone))
        new = _Tracks(Motion.start(boxes[alone]), ids[alone], labels[alone], np.full(len(alone), now))
        self._tracks, self._frame = kept.joined(new), now
        rows = np.flatnonzero(ids != _TENTATIVE)
        return Tracked(found.take(rows), ids[rows])

    def _next_frame(self, time: float | None) -> float:
        if time is None:
            return 0.0 if self._frame is None else self._frame + 1
        now = time * self._rate
        if not np.isfinite(now) or (self._frame is not None and now <= self._frame):
            raise ArgumentError(f"the frame at {time} s is not later than the last one; give times that increase")
        return now

    def _partners(
        self, tracks: _Tracks, lost: Bools, boxes: Floats, labels: Ints, scores: npt.NDArray[np.floating]
    ) -> Ints:
        """Algorithm 1 of the paper: the detection that continues each track, ``(T,)``; −1: none."""
        partner = np.full(len(tracks.ids), -1)

        def associate(of_tracks: Bools, of_detections: Bools, least: float) -> None:
            free = np.ones(len(boxes), dtype=np.bool_)
            free[partner[partner >= 0]] = False
            rows, columns = np.flatnonzero(of_tracks & (partner < 0)), np.flatnonzero(of_detections & free)
            row, column = best_pairs(
                tracks.motion.boxes[rows], tracks.labels[rows], boxes[columns], labels[columns], least
            )
            partner[rows[row]] = columns[column]

        high = scores >= self.settings.high
        confirmed = tracks.ids != _TENTATIVE
        associate(confirmed, high, self.settings.high_iou)
        # A lost track is not continued with a low score: what is found at its expected place is mostly background.
        associate(confirmed & ~lost, ~high & (scores >= self.settings.low), self.settings.low_iou)
        associate(~confirmed, high, self.settings.new_iou)
        return partner

    def _continued(self, tracks: _Tracks, partner: Ints, boxes: Floats, now: float) -> _Tracks:
        """Return the tracks that live on: corrected by their detections, or unseen, but not for long."""
        seen = partner >= 0
        new = np.flatnonzero(seen & (tracks.ids == _TENTATIVE))
        ids = tracks.ids.copy()
        ids[new] = self._new_ids(len(new))
        corrected = tracks.motion.take(seen).corrected(boxes[partner[seen]])
        alive = _Tracks(corrected, ids[seen], tracks.labels[seen], np.full(int(seen.sum()), now))
        unseen = ~seen & (ids != _TENTATIVE) & (now - tracks.seen <= self.settings.keep_seconds * self._rate)
        return alive.joined(tracks.take(unseen))

    def _new_ids(self, count: int) -> Ints:
        ids = np.arange(self._count + 1, self._count + count + 1)
        self._count += count
        return ids
