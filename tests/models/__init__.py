"""The files of well-known models, small and with random weights: exported and compared."""
