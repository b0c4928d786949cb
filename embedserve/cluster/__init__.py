"""The application of `embedserve serve` over a Ray cluster, by Ray Serve."""
