"""jobs/generate.py, one of whose ranks raises while it draws."""

import os
import runpy
import sys
from typing import Any

from hybridiff.lit.writer import CorpusWriter


def _raise(self: CorpusWriter, *_: Any, **__: Any) -> None:
    if os.environ["SLURM_PROCID"] == "1":
        raise RuntimeError("rank 1 is out of luck")


if __name__ == "__main__":
    CorpusWriter.write_on_batch_end = _raise  # type: ignore[method-assign, assignment]
    sys.argv = ["jobs/generate.py", *sys.argv[2:]]
    runpy.run_path("jobs/generate.py", run_name="__main__")
