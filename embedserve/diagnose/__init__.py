"""What an operator asks before and beside serving."""
