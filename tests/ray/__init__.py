"""What runs on a Ray cluster of two nodes, as processes on this machine (.venv-ray)."""
