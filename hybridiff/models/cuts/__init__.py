"""Where networks are cut into segments that run at the same time."""

from hybridiff.models.cuts.choose import choose_cut
from hybridiff.models.cuts.cut import Atom, Cut
from hybridiff.models.cuts.plans import plan_of

__all__ = ["Atom", "Cut", "choose_cut", "plan_of"]
