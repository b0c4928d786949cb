"""A function for each shape: it writes the files of a model into an empty directory."""
