"""Faults: full and failing disks, killed processes, several at once."""
