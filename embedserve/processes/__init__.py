"""Several serving processes on one port, with `processes` in the settings."""
