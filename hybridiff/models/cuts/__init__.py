"""Cuts of networks into segments that run at the same time on several ranks."""

from hybridiff.models.cuts.choose import choose_cut
from hybridiff.models.cuts.cut import Block, Cut
from hybridiff.models.cuts.plans import chain, plan_of, register_plan

__all__ = ["Block", "Cut", "chain", "choose_cut", "plan_of", "register_plan"]
