"""The training loop and the files that it writes; ``retinanet.train`` is a function in ``api.py``."""
