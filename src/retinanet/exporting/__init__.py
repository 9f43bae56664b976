"""Files for other runtimes: ONNX, OpenVINO and ``torch.export``, each verified against the model it comes from."""
