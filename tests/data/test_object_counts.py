from __future__ import annotations

from pathlib import Path

from retinanet.data.dataset import DatasetBuilder
from retinanet.data.object_counts import most_objects, objects_per_image


def test_objects_are_counted_without_ignore_regions() -> None:
    builder = DatasetBuilder("some", Path("/data"), ("cat",))
    for objects, regions in ((0, 0), (2, 5), (3, 0), (0, 4)):
        builder.add_image(f"{objects}-{regions}.jpg", 100, 100)
        for number in range(objects + regions):
            builder.add_box((0, 0, 10, 10 + number), 0, "", ignore=number >= objects)
    dataset = builder.build()
    assert objects_per_image(dataset).tolist() == [0, 2, 3, 0]
    assert most_objects(dataset) == 3
    assert most_objects(dataset.subset([0, 3])) == 0
