"""WIRE: groups of ranks, their collectives, and the hooks through which a stock pipeline runs on them."""

from hybridiff.parallel.api import Handle, parallelize
from hybridiff.parallel.exchange import Exchange, PeerLost
from hybridiff.parallel.mesh import Group, join_group

__all__ = ["Exchange", "Group", "Handle", "PeerLost", "join_group", "parallelize"]
