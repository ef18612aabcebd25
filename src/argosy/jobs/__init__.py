"""Jobs that come with Argosy, and their schema. Data, read by `job/load.py`."""
