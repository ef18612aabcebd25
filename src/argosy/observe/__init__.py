"""Draws: the screen of a run while it goes and the page afterwards. Reads the run folder; decides nothing; torch-free."""
