"""ByteTrack, compared with a slow version of Algorithm 1 of the paper; and ids that stay with their objects."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet.detection.motion import Motion
from retinanet.detection.tracking import Tracked, Tracker, TrackSettings
from retinanet.detections import Detections
from retinanet.errors import ArgumentError
from tracks import Scene, idf1, imperfect, scene

SETTINGS = TrackSettings()


def detections(boxes: Any, scores: Any, labels: Any = None) -> Detections:
    count = len(scores)
    return Detections.of_one_image(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(scores, dtype=np.float32),
        np.array(labels if labels is not None else [0] * count, dtype=np.int64),
    )


def iou(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


class Track:
    """A track of the slow version."""

    def __init__(self, box: npt.NDArray[Any], label: int, number: int | None) -> None:
        self.motion = Motion.start(box[None].astype(np.float64))
        self.label, self.number, self.missed, self.lost_for = label, number, False, 0.0


class PaperTracker:
    """Algorithm 1 of arXiv 2110.06864, line by line; assignments are found by trying all permutations."""

    def __init__(self) -> None:
        self.tracks: list[Track] = []
        self.frames = self.ids = 0

    def step(self, found: Detections, elapsed: float) -> dict[int, int]:
        """Return the id of each detection that has one."""
        high = [i for i in range(len(found)) if found.scores[i] >= SETTINGS.high]  # lines 3 to 13
        low = [i for i in range(len(found)) if SETTINGS.low <= found.scores[i] < SETTINGS.high]
        for track in self.tracks:  # lines 14 to 16
            track.motion = track.motion.predicted(elapsed, np.array([track.missed]))
        known = [track for track in self.tracks if track.number is not None]
        pairs = self.associate(known, high, found, SETTINGS.high_iou)  # lines 17 to 19
        remain = [track for track in known if track not in dict(pairs) and not track.missed]
        pairs += self.associate(remain, low, found, SETTINGS.low_iou)  # lines 20 and 21
        left = [i for i in high if i not in {row for _, row in pairs}]
        pairs += self.associate([t for t in self.tracks if t.number is None], left, found, SETTINGS.new_iou)
        taken = dict(pairs)
        for track in list(self.tracks):  # line 22: lost tracks are kept for a while
            if track in taken:
                track.missed, track.lost_for = False, 0.0
                track.motion = track.motion.corrected(found.boxes[taken[track]][None].astype(np.float64))
                track.number = track.number or self.next_id()
            else:
                track.missed, track.lost_for = True, track.lost_for + elapsed
                if track.number is None or track.lost_for > SETTINGS.keep_seconds * 30 + 1e-9:
                    self.tracks.remove(track)
        result = {i: track.number for track, i in pairs if track.number is not None}
        for i in high:  # lines 23 to 25
            if i not in taken.values():
                track = Track(found.boxes[i], int(found.labels[i]), self.next_id() if self.frames == 0 else None)
                self.tracks.append(track)
                if track.number is not None:
                    result[i] = track.number
        self.tracks.sort(key=lambda track: track.missed)  # those with a detection first, as new ids depend on it
        self.frames += 1
        return result

    def next_id(self) -> int:
        self.ids += 1
        return self.ids

    @staticmethod
    def associate(tracks: list[Track], rows: list[int], found: Detections, least: float) -> list[tuple[Track, int]]:
        gain = np.zeros((len(tracks), len(rows)))
        for a, track in enumerate(tracks):
            for b, row in enumerate(rows):
                overlap = iou(track.motion.boxes[0], found.boxes[row].astype(np.float64))
                gain[a, b] = overlap if overlap >= least and track.label == found.labels[row] else 0
        best: list[tuple[int, int]] = []
        total = 0.0
        few, many = sorted(gain.shape)
        for choice in permutations(range(many), few):
            pairs = list(enumerate(choice)) if len(tracks) <= len(rows) else [(b, a) for a, b in enumerate(choice)]
            value = sum(gain[pair] for pair in pairs)
            if value > total + 1e-12:
                total, best = value, pairs
        return [(tracks[a], rows[b]) for a, b in best if gain[a, b] > 0]


@pytest.mark.parametrize("seed", range(6))
def test_ids_are_those_of_the_paper(seed: int) -> None:
    truth = scene(seed, objects=4, frames=80, size=200, variable=seed % 2 == 1)
    tracker, paper, last = Tracker(), PaperTracker(), 0.0
    for time, found in zip(truth.times, imperfect(truth, seed, misses=0.2, false=0.5), strict=True):
        tracked = tracker.update(found, time)
        expected = paper.step(found, (time - last) * 30)
        last = time
        rows = [int(np.flatnonzero((found.boxes == box).all(axis=1))[0]) for box in tracked.found.boxes]
        assert dict(zip(rows, tracked.ids.tolist(), strict=True)) == expected


def follow(truth: Scene, found: list[Detections]) -> list[Tracked]:
    tracker = Tracker()
    return [tracker.update(each, time) for time, each in zip(truth.times, found, strict=True)]


@pytest.mark.parametrize("variable", [False, True])
def test_crossing_and_vanishing_objects_keep_their_ids(variable: bool) -> None:
    """IDF1 over 10 scenes: noisy boxes, 5 % missing, 15 % with low scores, false positives, objects that are hidden."""
    values = []
    for seed in range(10):
        truth = scene(seed, variable=variable)
        tracked = follow(truth, imperfect(truth, seed))
        values.append(idf1(truth, [each.found.boxes for each in tracked], [each.ids for each in tracked]))
    assert np.mean(values) > 0.9
    assert min(values) > 0.75


def test_two_runs_give_the_same_ids() -> None:
    truth = scene(3, objects=20)
    first, second = (follow(truth, imperfect(truth, 3)) for _ in range(2))
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(first, second, strict=True))


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), misses=st.floats(0, 0.9), false=st.floats(0, 3))
def test_ids_are_unique_and_never_used_again(seed: int, misses: float, false: float) -> None:
    truth = scene(seed, objects=6, frames=50, size=150)
    ended: set[int] = set()
    last_seen: dict[int, float] = {}
    label_of: dict[int, int] = {}
    known = 0
    for time, tracked in zip(truth.times, follow(truth, imperfect(truth, seed, misses, false=false)), strict=True):
        ids = tracked.ids.tolist()
        assert len(set(ids)) == len(ids)
        assert not ended & set(ids)
        new = sorted(set(ids) - set(last_seen))
        assert new == list(range(known + 1, known + len(new) + 1))
        known += len(new)
        for number, label in zip(ids, tracked.found.labels.tolist(), strict=True):
            assert label_of.setdefault(number, label) == label
            last_seen[number] = time
        ended |= {k for k, at in last_seen.items() if time - at > SETTINGS.keep_seconds + 0.1}


def moving(frame: int) -> list[float]:
    return [10 + 4 * frame, 10, 40 + 4 * frame, 40]


def test_an_object_that_returns_in_time_gets_its_id_again() -> None:
    for hidden, ids in ((20, {1}), (40, {1, 2})):
        tracker, seen = Tracker(), set()
        for frame in range(80):
            visible = not 15 <= frame < 15 + hidden
            found = detections([moving(frame)] * visible, [0.9] * visible)
            seen |= set(tracker.update(found, frame / 30).ids.tolist())
        assert seen == ids


def test_low_scores_continue_a_track_and_start_none() -> None:
    tracker = Tracker()
    for frame in range(10):
        low = 3 <= frame < 6
        tracked = tracker.update(detections([moving(frame), [200, 200, 230, 230]], [0.1 if low else 0.9, 0.2]))
        assert tracked.ids.tolist() == [1]
        assert tracked.found.scores[0] == np.float32(0.1 if low else 0.9)


def test_a_false_positive_in_one_frame_gets_no_id() -> None:
    tracker = Tracker()
    tracker.update(detections([moving(0)], [0.9]))
    tracker.update(detections([moving(1), [200, 200, 230, 230]], [0.9, 0.8]))
    for frame in range(2, 5):
        assert tracker.update(detections([moving(frame)], [0.9])).ids.tolist() == [1]
    tracker.update(detections([moving(5), [100, 100, 130, 130]], [0.9, 0.8]))
    assert tracker.update(detections([moving(6), [100, 100, 130, 130]], [0.9, 0.8])).ids.tolist() == [1, 2]


def test_classes_do_not_mix() -> None:
    tracker = Tracker()
    for frame in range(10):
        boxes = [moving(frame), moving(frame)]
        assert tracker.update(detections(boxes, [0.9, 0.8], [0, 1])).ids.tolist() == [1, 2]


def test_the_scores_follow_the_threshold() -> None:
    settings_of_paper = TrackSettings.from_score(0.6)
    assert settings_of_paper.high == 0.6
    assert settings_of_paper.low == pytest.approx(0.1)


@pytest.mark.parametrize("time", [0.5, 0.2, float("nan")])
def test_times_must_increase(time: float) -> None:
    tracker = Tracker()
    tracker.update(Detections.empty(), 0.5)
    with pytest.raises(ArgumentError, match="times that increase"):
        tracker.update(Detections.empty(), time)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_frame_rate_is_positive(rate: float) -> None:
    with pytest.raises(ArgumentError, match="frames per second"):
        Tracker(frame_rate=rate)
