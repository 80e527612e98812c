"""IMAGES. Arrays of pixels as image files: the same bytes on every run."""

from hybridiff.images.encoder import IMAGE_FORMATS, Encoder, ImageFormat

__all__ = ["IMAGE_FORMATS", "Encoder", "ImageFormat"]
