"""Readers of the dataset formats; :mod:`retinanet.data.formats.detect` chooses among them."""
