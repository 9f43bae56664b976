"""More than one machine: detection and evaluation on a Ray cluster, and a server whose models run there."""
