"""Exported files as networks, without PyTorch: ONNX Runtime, OpenVINO, and post-processing in NumPy."""
