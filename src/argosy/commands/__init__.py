"""What a person can ask for: one file a command, a plain function and then its spelling for the shell. Torch inside functions."""
