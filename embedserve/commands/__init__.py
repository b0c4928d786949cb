"""The commands of embedserve, a module each."""
