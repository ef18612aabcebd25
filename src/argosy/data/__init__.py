"""What is read: from text to the global batch of step n. NumPy only."""
