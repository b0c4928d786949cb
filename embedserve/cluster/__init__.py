"""The application of `embedserve serve` on a Ray cluster, run by Ray Serve."""
