"""Images → detections: the detector, image files, drawing and output files."""
