"""Networks, one a file, on the layers of `layers.py`."""
