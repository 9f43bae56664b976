"""A web server for detectors: the API, batches of many clients' images, limits, and a page. It imports no torch."""
