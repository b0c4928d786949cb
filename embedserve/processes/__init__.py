"""Several serving processes on one port, with `processes` in the settings."""

# The parent hands each process its descriptors and its number in this variable: Member.
VARIABLE = "_EMBEDSERVE_MEMBER"
