"""What a model knows and writes: bits per byte on held-out text, samples. Knows model and data; changes no training state."""
