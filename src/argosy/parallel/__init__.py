"""One model on many ranks: groups, data parallelism, the order in which dimensions are applied. Knows device and model."""
