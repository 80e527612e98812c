"""The section ``output``."""

from dataclasses import dataclass

from hybridiff.errors import require, require_choice

IMAGE_FORMATS = ("png", "jpg", "webp")
BYTES_PER_PIXEL = {  # of photographs of 1024 x 1024 pixels, by quality; straight lines in between
    "png": ((1, 1.5),),
    "jpg": ((1, 0.02), (50, 0.06), (75, 0.1), (89, 0.16), (90, 0.27), (95, 0.4), (98, 0.85), (100, 1.45)),
    "webp": ((1, 0.01), (50, 0.04), (75, 0.06), (90, 0.13), (95, 0.25), (100, 0.37), (101, 1.4)),
}
SIDECARS = ("json", "none")
SHARD_SIZE = 1000  # images


@dataclass(frozen=True)
class OutputConfig:
    """Where the corpus goes.

    Args:
        url: Directory of the corpus: a path or any fsspec url, such as s3://bucket/corpus.
        shard_size: Images in a shard; by default 1000. Not together with shard_bytes.
        shard_bytes: Bytes that a tar should have about. It becomes a number of images when the run is planned, from the pixels of
            an image and what photographs take per pixel in its format and quality: flat pictures take less, and so do tars then.
        image_format: png, jpg or webp.
        quality: Of jpg (1 to 100) and webp (1 to 100; 101 is lossless); png has none and is always lossless.
        sidecar: What the tar holds of an image's row: json (all of it) or none (only its prompt; the Parquet file has the row).
        embed_images: Whether the Parquet files hold the images too, as data sets of Hugging Face do. They are written twice then.
        grace_s: Seconds that the open shard may still take after SIGTERM, SIGINT or SIGUSR1; else it is dropped.
        max_failed_fraction: Of the rows that a group has drawn, or of the first hundred of its share of the job, 0 to 1: with
            more failed ones the run ends, with exit code 3.
    """

    url: str = ""
    shard_size: int | None = None
    shard_bytes: int | None = None
    image_format: str = "png"
    quality: int = 95
    sidecar: str = "json"
    embed_images: bool = False
    grace_s: float = 60.0
    max_failed_fraction: float = 0.1

    def __post_init__(self) -> None:
        require(bool(self.url), "output.url", self.url, "a directory or an fsspec url")
        alone = f"none next to output.shard_bytes, which is {self.shard_bytes}"
        require(self.shard_size is None or self.shard_bytes is None, "output.shard_size", self.shard_size, alone)
        require(self.shard_size is None or self.shard_size >= 1, "output.shard_size", self.shard_size, "1 or more")
        require(self.shard_bytes is None or self.shard_bytes >= 1, "output.shard_bytes", self.shard_bytes, "1 byte or more")
        require_choice("output.sidecar", self.sidecar, SIDECARS)
        require_choice("output.image_format", self.image_format, IMAGE_FORMATS)
        webp = self.image_format == "webp"
        allowed = "1 to 100, or 101 for lossless" if webp else f"1 to 100 with output.image_format {self.image_format}"
        require(1 <= self.quality <= 100 + webp, "output.quality", self.quality, allowed)
        require(self.grace_s >= 0, "output.grace_s", self.grace_s, "0 seconds or more")
        fraction = self.max_failed_fraction
        require(0 <= fraction <= 1, "output.max_failed_fraction", fraction, "0 to 1")

    def images_per_shard(self, width: int, height: int) -> int:
        """Images in a shard, of so many pixels each; it depends on nothing that is only known once they are drawn."""
        if self.shard_bytes is None:
            return self.shard_size or SHARD_SIZE
        return max(1, round(self.shard_bytes / (width * height * self.bytes_per_pixel)))

    @property
    def bytes_per_pixel(self) -> float:
        """What photographs take per pixel in the format and quality."""
        known = BYTES_PER_PIXEL[self.image_format]
        below = max((one for one in known if one[0] <= self.quality), default=known[0])
        above = min((one for one in known if one[0] >= self.quality), default=known[-1])
        weight = (self.quality - below[0]) / (above[0] - below[0]) if above[0] > below[0] else 0.0
        return below[1] + weight * (above[1] - below[1])
