"""embedserve embed: readers, engine, outputs, resume, and the command itself."""
