"""``hybridiff evaluate``, for a checkout."""

from hybridiff.cli import entry

if __name__ == "__main__":
    entry("evaluate")
