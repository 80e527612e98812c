"""WIRE: groups of ranks, what they exchange, and the hook through which a stock pipeline runs on them."""

from hybridiff.parallel.api import Handle, parallelize
from hybridiff.parallel.exchange import Exchange, PeerLost
from hybridiff.parallel.mesh import Group, join_group

__all__ = ["Exchange", "Group", "Handle", "PeerLost", "join_group", "parallelize"]
