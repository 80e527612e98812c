"""MEASURE: what the benchmark computes: times, traffic, fidelity, and the ideal that each is held against."""
