"""Where the pixels of a GeoTIFF file lie on the Earth; read by rasterio (the extra ``geo``)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retinanet.data.exif import SIDEWAYS, TURNED_BACK, turned_boxes
from retinanet.data.tiff_layout import tiff_orientation
from retinanet.errors import DataError
from retinanet.files import special_file
from retinanet.optional_packages import explain_missing_packages

Points = npt.NDArray[np.float64]

# The coordinate system of GeoJSON: longitude and latitude.
_WGS84 = "OGC:CRS84"


@dataclass(frozen=True)
class Georeference:
    """The map from pixels to coordinates of a coordinate reference system (CRS).

    Attributes:
        transform: ``(a, b, c, d, e, f)``: a point at column ``u`` and row ``v`` of the stored image, in pixels from its
            upper left corner, has the coordinates ``x = a·u + b·v + c`` and ``y = d·u + e·v + f``.
        crs: the CRS, such as ``EPSG:32632``, or its description as WKT; empty if the file states none.
        size: ``(width, height)`` of the upright image.
        orientation: EXIF orientation of the file, usually 1.
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str
    size: tuple[int, int]
    orientation: int = 1

    def corners(self, boxes: npt.NDArray[np.floating]) -> Points:
        """Coordinates of the corners of boxes.

        Args:
            boxes: ``(D, 4)`` ``xyxy`` in pixels of the upright image.

        Returns:
            float64 ``(D, 4, 2)``: ``x`` and ``y`` of the four corners, around each box.
        """
        back = TURNED_BACK.get(self.orientation, self.orientation)
        x1, y1, x2, y2 = turned_boxes(boxes.astype(np.float64).reshape(-1, 4), back, self.size).T
        u, v = np.stack((x1, x2, x2, x1), axis=1), np.stack((y1, y1, y2, y2), axis=1)
        a, b, c, d, e, f = self.transform
        return np.stack((a * u + b * v + c, d * u + e * v + f), axis=2)

    @explain_missing_packages("converting coordinates")
    def to_longitude_latitude(self, points: Points) -> Points | None:
        """Convert coordinates ``(…, 2)`` of the CRS to degrees of WGS 84.

        Returns:
            float64 of the same shape: longitude and latitude; ``None`` if the CRS is not known or has no known relation
            to WGS 84, or if a point lies outside the area where the CRS is defined.
        """
        import rasterio
        from rasterio.warp import transform

        if not self.crs:
            return None
        flat = points.reshape(-1, 2)
        try:
            with rasterio.Env():
                converted = np.array(transform(self.crs, _WGS84, flat[:, 0].tolist(), flat[:, 1].tolist()))
        except Exception:  # GDAL's errors have no public class; for example, of a CRS of a building site
            return None
        return converted[:2].T.reshape(points.shape) if np.isfinite(converted).all() else None


@explain_missing_packages("reading the coordinates of a GeoTIFF file")
def georeference(path: str | Path) -> Georeference | None:
    """Read where the pixels of a TIFF file lie; ``None`` if neither the file nor a world file beside it says so.

    Raises:
        DataError: the file is missing or not a TIFF file.
        MissingPackageError: rasterio is not installed.
    """
    import rasterio

    path = Path(path)
    if special := special_file(path):
        raise DataError(f"{path}: not a GeoTIFF file but {special}; give the path of a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            # Of GDAL's drivers, only this one: others open addresses, or files that the file names.
            with rasterio.open(path.absolute(), driver="GTiff") as file:
                transform, crs, stored = file.transform, file.crs, (file.width, file.height)
    except rasterio.errors.RasterioError as error:
        problem = "not a readable TIFF file" if path.exists() else "no such file"
        raise DataError(f"{path}: {problem}; coordinates are read from GeoTIFF files") from error
    if transform.is_identity:
        return None
    orientation = tiff_orientation(path)
    size = stored[::-1] if orientation in SIDEWAYS else stored
    return Georeference(tuple(transform)[:6], _name(crs), size, orientation)


def _name(crs: object) -> str:
    """``EPSG:…`` if the CRS has such a code, or else its description; empty if there is none."""
    return str(crs.to_string()) if crs and hasattr(crs, "to_string") else ""
