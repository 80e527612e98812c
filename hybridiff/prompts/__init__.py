"""PROMPTS: prompt tables of any format to rows, rows to shards."""

from hybridiff.config import PromptSource

__all__ = ["PromptSource"]
