"""One served model, from its artifact to its vectors."""
