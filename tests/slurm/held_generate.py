"""``hybridiff generate`` whose batches take $HELD_S seconds while the file $HOLD is there, and whose rank $RAISES raises."""

import os
import time
from pathlib import Path
from typing import Any

from hybridiff.cli import entry
from hybridiff.runner.writer import CorpusWriter

_write = CorpusWriter.write_on_batch_end


def _held(self: CorpusWriter, trainer: Any, module: Any, prediction: list[Any], *given: Any) -> None:
    if os.environ.get("RAISES") == os.environ["SLURM_PROCID"]:
        raise RuntimeError(f"rank {os.environ['RAISES']} is out of luck")
    until = time.monotonic() + (float(os.environ["HELD_S"]) if prediction else 0.0)  # none once the group has stopped
    while Path(os.environ["HOLD"]).exists() and time.monotonic() < until:
        time.sleep(0.05)
    _write(self, trainer, module, prediction, *given)


if __name__ == "__main__":
    CorpusWriter.write_on_batch_end = _held  # type: ignore[method-assign]
    entry("generate")
