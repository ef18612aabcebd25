"""Tries to show the rest wrong: a reference model from the formulas, the table of options, parity. Imports torch in functions only."""
