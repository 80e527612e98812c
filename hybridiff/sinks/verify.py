"""Is a corpus whole? Everything its markers promise is read again, one sample in memory at a time."""

from dataclasses import dataclass, field

from hybridiff.config import UsageError
from hybridiff.sinks.check import ShardCheck, said
from hybridiff.sinks.corpus import RUN_RECORD, Corpus, marker_name, metadata_name, tar_name

_SHOWN = 10  # problems per shard


@dataclass
class Report:
    """What ``verify`` found.

    Attributes:
        shards: With a commit marker.
        rows: Sum over the readable markers; likewise ``ok`` and ``failed``.
        missing: Shards without a commit marker.
        corrupt: Shards with a marker that is not kept; a run record that is missing or unreadable counts as one more.
        problems: One line each.
        notes: What is there without a marker: no problem, it is made anew or ignored.
    """

    shards: int = 0
    rows: int = 0
    ok: int = 0
    failed: int = 0
    missing: int = 0
    corrupt: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether nothing is missing or corrupt."""
        return not (self.missing or self.corrupt)

    def summary(self) -> dict[str, int]:
        """The counts by name."""
        return {name: getattr(self, name) for name in ("shards", "rows", "ok", "failed", "missing", "corrupt")}


def verify(corpus: Corpus) -> Report:
    """Checks a corpus against its markers and its run record.

    Raises:
        UsageError: If there is no corpus at all.
    """
    report = Report()
    committed = corpus.committed()
    planned = _planned(corpus, report, bool(committed))
    report.shards = len(committed)
    keys: set[str] = set()
    for index in sorted(committed):
        check = ShardCheck(corpus, index, keys)
        check.run()
        if index >= planned.get("shards", index + 1):
            check.problem(f"{marker_name(index)}: the plan has only {planned['shards']} shards")
        if check.counts:
            report.rows += check.counts["rows"]
            report.ok += check.counts["ok"]
            report.failed += check.counts["failed"]
        report.corrupt += bool(check.problems)
        report.problems += check.problems[:_SHOWN]
        if len(check.problems) > _SHOWN:
            report.problems.append(f"shard {index:05d}: {len(check.problems) - _SHOWN} more problems")
    absent = sorted(set(range(planned.get("shards", 0))) - committed)
    report.missing = len(absent)
    report.problems += [f"{marker_name(index)}: missing" for index in absent]
    if planned and report.whole and report.rows != planned["rows"]:
        report.corrupt += 1
        report.problems.append(f"{RUN_RECORD}: the plan has {planned['rows']} rows, the markers {report.rows}")
    report.notes += _uncommitted(corpus, committed)
    return report


def _planned(corpus: Corpus, report: Report, any_marker: bool) -> dict[str, int]:
    """``rows`` and ``shards`` of the plan; empty, and a problem, if the run record does not say."""
    try:
        run = corpus.read_run()
        if run is not None:
            return {name: int(run["plan"][name]) for name in ("rows", "shards")}
        text = f"{RUN_RECORD}: missing"
    except (UsageError, KeyError, TypeError, ValueError) as error:
        text = f"{RUN_RECORD}: {said(error)}"
        run = {}
    if run is None and not any_marker:
        raise UsageError(f"{corpus.url} holds no corpus: neither {RUN_RECORD} nor a marker in commits/")
    report.corrupt += 1
    report.problems.append(text)
    return {}


def _uncommitted(corpus: Corpus, committed: set[int]) -> list[str]:
    """Files in the directories of shards that no marker vouches for."""
    known = {name for index in committed for name in (tar_name(index), metadata_name(index))}
    found = (f"{directory}/{name}" for directory in ("images", "metadata") for name in corpus.names(directory))
    return [f"{name}: without a marker; ignored" for name in found if name not in known]
