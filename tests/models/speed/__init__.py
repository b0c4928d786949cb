"""Texts a second through the server's engine, against sentence-transformers on torch."""
