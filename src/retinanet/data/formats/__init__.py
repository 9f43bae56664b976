"""Readers and writers of dataset formats; :mod:`retinanet.data.formats.open_dataset` recognizes the format."""
