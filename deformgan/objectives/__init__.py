"""What a run optimises: one objective a file, all of the shape in `contract.py`."""
