"""PROMPTS: prompt tables of any format to rows, rows to shards."""
