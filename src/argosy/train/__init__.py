"""Training: the rank's life, the loop, one beat, what all ranks agree on. The engine's top room: it composes the others."""
