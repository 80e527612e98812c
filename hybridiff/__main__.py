"""``python -m hybridiff``: the same as the command ``hybridiff``."""

from hybridiff.cli import entry

if __name__ == "__main__":
    entry()
