"""What is done about what happens: pure functions over small values. Without torch, processes or clocks."""
