"""Cluster files that come with Argosy, and their schema. Data, read by `cluster/schema.py`."""
