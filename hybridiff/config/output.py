"""The section ``output``."""

from dataclasses import dataclass
from typing import Literal, get_args

from hybridiff.errors import require, require_choice
from hybridiff.images import Encoder, ImageFormat
from hybridiff.secrets import refuse_credentials

Sidecar = Literal["json", "none"]
SHARD_SIZE = 1000  # images
MAX_SHARD_SIZE = 1_000_000  # images
MAX_SHARD_BYTES = 1 << 40
MAX_GRACE_S = 86_400


@dataclass(frozen=True)
class OutputConfig:
    """Where the corpus goes.

    Args:
        url: directory of the corpus: a path or any fsspec url, such as s3://bucket/corpus. Credentials come from the environment.
        shard_size: images in a shard; by default 1000. Not together with shard_bytes.
        shard_bytes: approximate size of a tar in bytes. It becomes a number of images when the run is planned, from the pixels of
            an image and the size of photographs in its format and quality; tars of flat images are smaller.
        image_format: format of the images.
        quality: quality of jpg (1 to 100) and webp (1 to 100; 101 is lossless); png has none and is always lossless.
        sidecar: metadata beside each image in the tar: json (its row) or none (only its prompt; the Parquet file has the row).
        columns: columns of the prompt tables that the corpus carries, under the names that it stores them with; by default all.
        embed_images: whether the Parquet files hold the images too, as Hugging Face's datasets do. They are written twice then.
        grace_s: seconds that the open shard may still take after SIGTERM, SIGINT or SIGUSR1; then it is dropped.
        max_failed_fraction: largest allowed fraction of failed rows, 0 to 1, among those that a group has generated, or among the
            first hundred of its share of the job; with more the run ends with exit code 3.
    """

    url: str = ""
    shard_size: int | None = None
    shard_bytes: int | None = None
    image_format: ImageFormat = "png"
    quality: int = 95
    sidecar: Sidecar = "json"
    columns: list[str] | None = None
    embed_images: bool = False
    grace_s: float = 60.0
    max_failed_fraction: float = 0.1

    def __post_init__(self) -> None:
        require(bool(self.url), "output.url", self.url, "a directory or an fsspec url")
        refuse_credentials("output.url", self.url)
        alone = f"none next to output.shard_bytes, which is {self.shard_bytes}"
        require(self.shard_size is None or self.shard_bytes is None, "output.shard_size", self.shard_size, alone)
        size, size_bytes = self.shard_size, self.shard_bytes
        require(size is None or 1 <= size <= MAX_SHARD_SIZE, "output.shard_size", size, f"1 to {MAX_SHARD_SIZE}")
        bounded = size_bytes is None or 1 <= size_bytes <= MAX_SHARD_BYTES
        require(bounded, "output.shard_bytes", size_bytes, f"1 to {MAX_SHARD_BYTES} bytes")
        require_choice("output.sidecar", self.sidecar, get_args(Sidecar))
        Encoder(self.image_format, self.quality)
        require(0 <= self.grace_s <= MAX_GRACE_S, "output.grace_s", self.grace_s, f"0 to {MAX_GRACE_S} seconds")
        fraction = self.max_failed_fraction
        require(0 <= fraction <= 1, "output.max_failed_fraction", fraction, "0 to 1")

    @property
    def encoder(self) -> Encoder:
        """The encoder of the images."""
        return Encoder(self.image_format, self.quality)

    def images_per_shard(self, width: int, height: int) -> int:
        """Images in a shard, from the pixels of one; known before any is generated."""
        if self.shard_bytes is None:
            return self.shard_size or SHARD_SIZE
        return max(1, round(self.shard_bytes / (width * height * self.encoder.bytes_per_pixel)))
