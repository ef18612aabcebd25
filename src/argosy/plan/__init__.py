"""What will be done here, and what it costs: settings, derived values, FLOPs, bytes, seconds. Without torch."""
