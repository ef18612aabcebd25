"""What a person can ask for: one file a command, a plain function, then its spelling for the shell. Torch in functions."""
