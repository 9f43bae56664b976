"""Detections → how good they are."""
