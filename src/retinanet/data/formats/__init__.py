"""Readers of the dataset formats; :mod:`retinanet.data.formats.open_dataset` chooses among them."""
