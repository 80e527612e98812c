"""``python jobs/benchmark``, or ``python -m jobs.benchmark``, also by torchrun. See ``command``."""

import os
import sys
from pathlib import Path

if not __package__:  # started as a folder: Python has put the folder itself on the path, where its checkout should be
    sys.path[0] = str(Path(__file__).parents[2])

from hybridiff.secrets import report_crash
from jobs.benchmark.command import main

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.excepthook = report_crash
    sys.exit(main())
