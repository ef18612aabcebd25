"""Saving and loading the state of a run: who writes which bytes, the node's files, and their way back into any layout."""
