"""What the machine gives, and what a process does with it."""
