"""Tries to show us wrong: a reference from the formulas, layouts against one process. Imports torch inside functions only."""
