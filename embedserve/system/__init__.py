"""What the machine offers, and how a process uses it."""
