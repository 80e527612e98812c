"""``python jobs/train_shapes``, or ``python -m jobs.train_shapes``. See ``command``."""

import sys
from pathlib import Path

if not __package__:  # started as a folder: Python has put the folder itself on the path, where its checkout should be
    sys.path[0] = str(Path(__file__).parents[2])

from jobs.train_shapes.command import main

if __name__ == "__main__":
    main()
