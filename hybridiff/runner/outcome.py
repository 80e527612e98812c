"""How a run ended, for the exit code and for the person who reads its last lines."""

from dataclasses import dataclass, field

from hybridiff.cluster.exit_codes import AGAIN, DONE, NOT_DONE, TOO_MANY_FAILED
from hybridiff.cluster.signals import RESUMABLE
from hybridiff.runner.data import ShardData
from hybridiff.runner.module import CorpusModule
from hybridiff.runner.progress import Counts
from hybridiff.runner.writer import CorpusWriter


@dataclass(frozen=True)
class Outcome:
    """What this rank's group did.

    Args:
        drew: Whether it had any shard to draw.
        signal: Name of the signal by which it stopped with work left; None if it did not.
        drawn: Rows that it drew; ``failed`` of them.
        too_many_failed: Whether it stopped for that reason, or, where it tried all rows, whether so many failed.
        tried_all: Whether it drew all rows, whatever failed.
        lost: Why shards could not be written, by index.
        quiet: Whether another rank speaks for this one.
        counts: What was generated, by all groups where all of them have ended together.
        if_left: The exit code where shards are left, for a rank that speaks for others.
    """

    drew: bool = False
    signal: str | None = None
    drawn: int = 0
    failed: int = 0
    too_many_failed: bool = False
    tried_all: bool = False
    lost: dict[int, str] = field(default_factory=dict)
    quiet: bool = False
    if_left: int = DONE
    counts: Counts | None = None

    @property
    def code(self) -> int:
        """The exit code."""
        if self.too_many_failed:
            return TOO_MANY_FAILED
        return AGAIN if self.signal else NOT_DONE if self.lost else DONE

    def lines(self) -> list[str]:
        """What went wrong, if anything, a line each."""
        found = [f"shard {index} was not written: {why}" for index, why in sorted(self.lost.items())]
        if self.too_many_failed:
            start = "" if self.tried_all else "stopped: "
            found.append(f"{start}{self.failed} of {self.drawn} rows failed, more than output.max_failed_fraction allows")
        elif self.signal:
            found.append(f"stopped by {self.signal}; {RESUMABLE}")
        return found


def outcome_of(module: CorpusModule, data: ShardData, writer: CorpusWriter) -> Outcome:
    """What this rank's group did."""
    stopping, signals = module.stopping, module.signals
    stopped = data.stopped
    if stopping is None:
        return Outcome(signal=signals.received if stopped else None, lost=dict(data.lost))
    too_many = stopping.too_many_failed and not (stopping.tries_all and stopped)
    return Outcome(
        drew=bool(data.shards),
        signal=signals.received if stopped and not too_many else None,
        drawn=stopping.generated,
        failed=stopping.failed,
        too_many_failed=too_many,
        tried_all=stopping.tries_all,
        lost=data.lost | writer.lost,
    )
