"""Metrics: of pairs of images, of distributions of features, and checks of single images; pure functions of arrays."""
