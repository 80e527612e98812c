"""The benchmark: times, traffic and fidelity of every schedule and placement, each beside its ideal. See ``command``."""
