"""Arrays, and what is computed of them: numpy only."""
