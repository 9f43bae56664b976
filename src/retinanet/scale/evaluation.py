"""``retinanet eval --ray``: the images of a dataset, divided among the workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retinanet.data.dataset import Dataset
from retinanet.data.image_sizes import batches_of_one_padded_size
from retinanet.detection.detector import Detector
from retinanet.detection.input_images import ImageFile
from retinanet.detection.tile_plan import Tiling
from retinanet.detections import Detections
from retinanet.errors import DataError
from retinanet.machine import Precision
from retinanet.scale.cluster import joined
from retinanet.scale.options import ScaleOptions
from retinanet.scale.work import Batch, BatchImage, ModelSource, WorkerSettings
from retinanet.scale.worker import weights_digest

# Images that share a batch at most, as in an evaluation on one machine.
_BATCH = 8


@dataclass(frozen=True)
class ClusterPredictor:
    """Runs a detector over a dataset, on the workers of a cluster.

    Attributes:
        address: the cluster; see :func:`retinanet.scale.cluster.joined`.
        scale: its workers.
        model: how the workers load the detector.
    """

    address: str
    scale: ScaleOptions
    model: ModelSource

    def __call__(
        self,
        detector: Detector,
        dataset: Dataset,
        progress: Callable[[int], object],
        *,
        max_detections: int | None = None,
        tiling: Tiling | None = None,
    ) -> Detections:
        """Detect objects in every image of ``dataset``, with boxes in pixels of the images.

        Raises:
            DataError: an image cannot be read.
            MissingPackageError: Ray is not installed.
            RetinaNetError: the cluster cannot be joined, or a worker cannot work.
        """
        settings = WorkerSettings(
            self.model,
            weights_digest(detector),
            Path.cwd(),
            max_detections=max_detections,
            tiling=tiling,
            batch=_BATCH,
        )
        parts = []
        with joined(self.address, self.scale) as cluster:
            for each in cluster.run(_batches(detector, dataset, tiling is not None), settings):
                if each.result.found is None:
                    raise DataError(each.result.error)
                parts.append(each.result.found.moved(each.number))
                progress(1)
        return Detections.concatenate(parts)


def cluster_predictor(
    address: str, scale: ScaleOptions, weights: str | Path, *, precision: Precision = "auto", device: str = "auto"
) -> ClusterPredictor:
    """Return the :class:`ClusterPredictor` of some weights."""
    return ClusterPredictor(address, scale, ModelSource(str(weights), precision, device))


def _batches(detector: Detector, dataset: Dataset, alone: bool) -> list[Batch]:
    """Return the batches of all images; the number of an image is its position in the dataset."""
    images = [BatchImage(ImageFile(Path(dataset.path(i)), Path(str(i))), i) for i in dataset]
    if alone:
        return [[image] for image in images]
    shapes = [detector.scaled_size(height, width) for width, height in dataset.sizes.tolist()]
    pad_to = detector.info.config.data.pad_to
    return [[images[i] for i in group] for group in batches_of_one_padded_size(shapes, _BATCH, pad_to)]
