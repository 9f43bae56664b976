"""Images for the verification of an export without data: a photo, drawn scenes and noise, of odd sizes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinanet.data.synthetic import draw_scene
from retinanet.zoo.weights import BUNDLED

Pixels = npt.NDArray[np.uint8]

# (height, width) of the images. Four have the same size, so that they share a batch.
SIZES = (
    (480, 640),
    (480, 640),
    (480, 640),
    (480, 640),
    (427, 640),
    (640, 431),
    (333, 500),
    (97, 401),
    (33, 57),
    (1, 9),
)


def sample_images() -> list[Pixels]:
    """Return uint8 RGB images ``(H, W, 3)``: three sources in turn, in the sizes ``SIZES``."""
    generator = np.random.default_rng(0)
    photo = Image.open(BUNDLED / "person.jpg").convert("RGB")
    images = []
    for number, (height, width) in enumerate(SIZES):
        if number % 3 == 0:
            images.append(np.asarray(photo.resize((width, height))))
        elif number % 3 == 1 and min(height, width) > 64:
            scene, _, _ = draw_scene(seed=0, index=number, size=320)
            images.append(np.asarray(scene.resize((width, height))))
        else:
            images.append(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return images
