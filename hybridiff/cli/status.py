"""``hybridiff status``: how far a dataset is."""

from hybridiff.cli import submit


def main(arguments: list[str]) -> int:
    """Prints how many shards are done, images/s, failed rows and time left."""
    return submit.main(["--watch", "--once", *arguments])
