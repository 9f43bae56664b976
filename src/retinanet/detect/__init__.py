"""Pictures → detections that users work with."""
