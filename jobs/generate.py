"""``hybridiff generate``, what torchrun and srun start in a checkout."""

from hybridiff.cli import entry

if __name__ == "__main__":
    entry("generate")
