"""Write the results for one video: a JSON line for each frame, and the annotated video. A thread draws and encodes."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from retinanet.detection.draw import draw
from retinanet.detection.stages import StageTimes
from retinanet.detection.video_frames import AnyReader, DetectedFrame, frames_waiting
from retinanet.detection.video_writer import FramesFile, VideoWriter
from retinanet.files import remove_leftovers

# Frames that wait to be drawn and encoded.
_WAITING = 8


class VideoOutput:
    """Writes ``path.jsonl`` and, with ``video``, an annotated video.

    Args:
        path: the files without their suffixes.
        reader: the source of the frames.
        classes: names of the detector's classes.
        video: write the annotated video.
        times: where the time for drawing and encoding is added.

    Attributes:
        frames: number of frames so far.
        counts: detections of each class, by name.
        objects: tracked objects of each class, by name.

    Raises:
        RetinaNetError: a file cannot be written.
    """

    def __init__(self, path: Path, reader: AnyReader, classes: Sequence[str], video: bool, times: StageTimes) -> None:
        self.frames = 0
        self.counts: Counter[str] = Counter()
        self.objects: Counter[str] = Counter()
        self._path, self._reader, self._classes, self._video, self._times = path, reader, tuple(classes), video, times
        remove_leftovers(path.parent, path.name)
        self._lines = FramesFile(path.with_name(f"{path.name}.jsonl"))
        self._writer: VideoWriter | None = None
        self._last_id = 0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="video-writer")
        self._pending: deque[Future[None]] = deque()

    def add(self, detected: DetectedFrame) -> None:
        """Write the line of a frame, and let the thread draw and encode it.

        Raises:
            RetinaNetError: this frame, or one of the frames before, cannot be written.
        """
        self._count(detected)
        self._lines.write(_line(detected, self._classes))
        self.frames += 1
        if not self._video:
            return
        if self._writer is None:
            self._writer = VideoWriter(self._path, self._reader, detected.frame)
        self._pending.append(self._pool.submit(self._draw_and_encode, self._writer, detected))
        while len(self._pending) > frames_waiting(self._reader, _WAITING):
            self._pending.popleft().result()

    def finish(self) -> list[str]:
        """Complete the files.

        Returns:
            Sentences about frames and audio that could not be written as they were.

        Raises:
            RetinaNetError: a file cannot be written.
        """
        while self._pending:
            self._pending.popleft().result()
        self._pool.shutdown()
        self._lines.close()
        if self._writer is None:
            return []
        self._writer.write_audio(self._reader.trailing_audio())
        self._writer.finish()
        return self._writer.notes()

    def discard(self) -> None:
        """Remove the unfinished video. The JSON lines stay, if there is one."""
        self._pool.shutdown(cancel_futures=True)
        self._lines.close()
        if self._writer is not None:
            self._writer.discard()
        if not self.frames:
            self._lines.path.unlink(missing_ok=True)

    def written(self) -> list[str]:
        """Return the names of the files."""
        return [each.path.name for each in (self._lines, self._writer) if each is not None]

    def _count(self, detected: DetectedFrame) -> None:
        names = [self._classes[label] for label in detected.found.labels.tolist()]
        self.counts.update(names)
        if detected.ids is not None:
            ids = detected.ids.tolist()
            self.objects.update(name for number, name in zip(ids, names, strict=True) if number > self._last_id)
            self._last_id = max([self._last_id, *ids])  # ids of new objects are larger than all before

    def _draw_and_encode(self, writer: VideoWriter, detected: DetectedFrame) -> None:
        with self._times.measured("draw"):
            image = draw(detected.frame.image, detected.found, self._classes, detected.ids)
        with self._times.measured("encode"):
            writer.write(detected.frame, image)


def _line(detected: DetectedFrame, classes: Sequence[str]) -> str:
    found = detected.found
    boxes = [[round(value, 2) for value in box] for box in found.boxes.tolist()]
    rows = [
        {"box": box, "score": round(score, 4), "label": label, "class": classes[label]}
        for box, score, label in zip(boxes, found.scores.tolist(), found.labels.tolist(), strict=True)
    ]
    if detected.ids is not None:
        rows = [{**row, "track": number} for row, number in zip(rows, detected.ids.tolist(), strict=True)]
    frame = {"frame": detected.frame.number, "time": round(detected.frame.time, 6), "detections": rows}
    return json.dumps(frame, ensure_ascii=False)
