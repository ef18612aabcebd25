"""The one room that knows CPU, CUDA, ROCm and MPS apart. Takes kinds and types by name, gives torch's; knows no model."""
