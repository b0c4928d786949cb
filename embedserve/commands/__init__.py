"""The commands of embedserve, one module each."""
