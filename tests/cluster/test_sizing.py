"""How large a job is, and the batch script it is submitted with, to the letter."""

import difflib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from hybridiff.cli import submit
from hybridiff.cluster.batch_script import render, write_script
from hybridiff.cluster.sizing import Size, parse_walltime, ranks_of_node, size_job, walltime
from hybridiff.config import ParallelConfig
from hybridiff.corpus import Corpus
from hybridiff.errors import UsageError

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
ARGUMENTS = ["--config", "my jobs/mine.yaml", "--sampling.steps=30"]


def test_a_known_rate_gives_the_walltime_with_a_margin() -> None:
    # 40 shards of 1000 on 8 groups: 5 shards each, 5000 s at 1 image/s, and 300 s to load
    assert size_job([1000] * 40, 2, 4, 1.0, 86400) == Size(tasks=2, groups=8, estimate_s=5300.0, walltime_s=7200, runs=1)


def test_a_job_longer_than_allowed_runs_several_times() -> None:
    # each run loads again and hears 210 s before its end that it must stop: of an hour it draws 3600 - 375 - 210 s at most
    assert size_job([1000] * 40, 2, 4, 1.0, 3600) == Size(tasks=2, groups=8, estimate_s=5900.0, walltime_s=3600, runs=3)
    assert size_job([4824], 1, 1, 2.0, 3600) == Size(tasks=1, groups=1, estimate_s=2712.0, walltime_s=3600, runs=1)
    assert size_job([4826], 1, 1, 2.0, 3600) == Size(tasks=1, groups=1, estimate_s=3013.0, walltime_s=3600, runs=2)


def test_no_more_nodes_than_have_work() -> None:
    assert size_job([1000] * 5, 100, 4, None, 86400) == Size(tasks=2, groups=8, estimate_s=None, walltime_s=86400, runs=1)
    assert size_job([], 100, 4, 1.0, 86400) == Size(tasks=1, groups=4, estimate_s=300.0, walltime_s=900, runs=1)


@pytest.mark.parametrize(("nodes", "rate", "longest_s"), [(0, 1.0, 3600), (1, 0.0, 3600), (1, 1.0, 60)])
def test_nonsense_is_refused(nodes: int, rate: float, longest_s: int) -> None:
    with pytest.raises(UsageError, match="allowed: "):
        size_job([1000], nodes, 1, rate, longest_s)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("90:30", 5430), ("04:00:00", 14400), ("2-12", 216000), ("1-00:30", 88200), ("1-01:01:01", 90061)],
)
def test_walltimes_are_read_in_every_form_of_slurm(text: str, seconds: int) -> None:
    assert parse_walltime(text) == seconds


def test_walltimes_are_written() -> None:
    assert walltime(100 * 3600 + 15 * 60) == "100:15:00"
    for text in ("a", "1:2:3:4", "-5", ""):
        with pytest.raises(UsageError, match="time is "):
            parse_walltime(text)


@pytest.mark.parametrize(
    ("name", "url", "options"),
    [
        ("submit-idle", "s3://bucket/runs/mine/", ["--gpus_per_node=7", "--nodes=2", "--account=me"]),
        ("submit-static", "gcs://bucket/mine", ["--gpus_per_node=8", "--ranks_per_node=6", "--array", "--nodes=3"]),
        ("submit-cpu", "/runs/my corpus", ["--ranks_per_node=4", "--qos=long"]),
    ],
)
def test_what_submit_writes_is_golden(name: str, url: str, options: list[str]) -> None:
    given = submit.parser().parse_args(options)
    ranks = ranks_of_node(given.gpus_per_node, given.ranks_per_node, ParallelConfig(group_size=2, leave_idle=True))
    size = Size(tasks=given.nodes, groups=given.nodes * ranks // 2, estimate_s=None, walltime_s=28800, runs=1)
    template = (ROOT / "slurm" / ("array.sbatch" if given.array else "generate.sbatch")).read_text()
    own = {name: value for name in submit.OWN if (value := getattr(given, name))}
    compare(name, write_script(template, ARGUMENTS, size, stored_at(url), given.gpus_per_node, ranks, given.array, own))


def stored_at(url: str) -> Corpus:
    """A corpus at an address, on storage that is not asked anything."""
    corpus = Corpus(url if "://" not in url else "/runs/mine")
    if "://" in url:
        corpus.url, corpus.fs = url, SimpleNamespace(protocol=url.partition(":")[0])
    return corpus


def test_an_edited_script_is_a_template_too() -> None:
    text = (ROOT / "slurm" / "generate.sbatch").read_text()
    edited = text.replace("#SBATCH --gpus-per-node=8", "#SBATCH --gpus-per-node a100:2\n#SBATCH --mem=0")
    rendered = render(edited, {"gpus-per-node": "4"}, [], {})
    assert "#SBATCH --gpus-per-node=4\n#SBATCH --mem=0\n" in rendered and "a100" not in rendered
    rendered = render(edited, {"gpus-per-node": None, "ntasks-per-node": "2"}, [], {})
    assert "gpus-per-node" not in rendered.partition("set --")[0] and "#SBATCH --ntasks-per-node=2\n" in rendered


def compare(name: str, text: str) -> None:
    """Fails with the difference and how to accept it, unless the text is the golden one."""
    path = GOLDEN / f"{name}.sbatch"
    if os.environ.get("ACCEPT_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    golden = path.read_text() if path.exists() else ""
    diff = "".join(difflib.unified_diff(golden.splitlines(True), text.splitlines(True), f"golden/{path.name}", "now"))
    accept = "ACCEPT_GOLDEN=1 python -m pytest tests/cluster/test_sizing.py"
    if diff:
        pytest.fail(f"the batch script has changed:\n{diff}\nif that is meant: {accept}", pytrace=False)


def test_a_mismatch_shows_the_difference_and_how_to_accept_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCEPT_GOLDEN", raising=False)
    text = (GOLDEN / "submit-idle.sbatch").read_text().replace("--nodes=2", "--nodes=5")
    with pytest.raises(
        pytest.fail.Exception, match=r"(?s)-#SBATCH --nodes=2\n\+#SBATCH --nodes=5.*if that is meant: ACCEPT_GOLDEN=1"
    ):
        compare("submit-idle", text)
