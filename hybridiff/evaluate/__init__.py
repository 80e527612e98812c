"""Evaluation: metrics of images, of pairs of images and of their distributions, and the report."""
