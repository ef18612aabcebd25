"""What there is: devices, nodes, links, and this machine. Without torch."""
