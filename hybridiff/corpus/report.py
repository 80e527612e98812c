"""What a check of a whole corpus found."""

from dataclasses import dataclass, field

from hybridiff.corpus.check import Finding

_SHOWN = 10  # problems per shard


@dataclass
class Report:
    """What ``verify`` found.

    Attributes:
        shards: With a commit marker.
        rows: Sum over the readable markers; likewise ``ok`` and ``failed``.
        missing: Shards without a commit marker.
        corrupt: Shards with a marker that is not kept; a run record that is missing or damaged counts as one more.
        unreadable: Shards of which storage did not give something that it has: whether they are whole is not known.
        problems: One line each.
        notes: What is there without a marker: no problem, it is made anew or ignored.
        damaged: The corrupt shards with their markers: making them again helps.
    """

    shards: int = 0
    rows: int = 0
    ok: int = 0
    failed: int = 0
    missing: int = 0
    corrupt: int = 0
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damaged: dict[int, bytes] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, corrupt or unreadable."""
        return not (self.missing or self.corrupt or self.unreadable)

    def summary(self) -> dict[str, int]:
        """The counts by name."""
        return {name: getattr(self, name) for name in ("shards", "rows", "ok", "failed", "missing", "corrupt", "unreadable")}

    def add(self, found: Finding) -> None:
        """Counts what was found in a shard."""
        for name, number in (found.counts or {}).items():
            setattr(self, name, getattr(self, name) + number)
        if not found.problems:
            return
        if found.unreadable:
            self.unreadable += 1
        else:
            self.corrupt += 1
            self.damaged[found.index] = found.marker
        self.problems += found.problems[:_SHOWN]
        if len(found.problems) > _SHOWN:
            self.problems.append(f"shard {found.index:05d}: {len(found.problems) - _SHOWN} more problems")
