"""Processes: started, watched, signalled, ended; and the driver that asks the policy. Without torch."""
