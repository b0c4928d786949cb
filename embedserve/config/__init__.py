"""models.toml, settings and API keys."""
