"""Attacks on a real server: whatever the form, memory within the printed bound, others served."""
