"""What happens on a connection."""
