"""What happened: the run folder, written and read by both towers. Without torch."""
