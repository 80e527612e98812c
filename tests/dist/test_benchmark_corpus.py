"""The benchmark of a corpus, as a user starts it: every part once, on a small scale."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dist.processes import ROOT, run
from tests.optional import needs
from tests.services.link import Link
from tests.services.swift import CREDENTIALS, Swift, environment

SMALL = ["--corpus.rounds=1", "--corpus.steps=1", "--corpus.schedule=full", "--corpus.formats=[jpg]", "--corpus.photograph=64"]
SMALLER = ["--corpus.megabytes=0.05", "--corpus.verified_megabytes=0.1"]


def last_line(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads([line for line in output.splitlines() if line][-1])
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_part_is_measured_and_nothing_is_left(tmp_path: Path, ranks: int) -> None:
    (tmp_path / "mine").mkdir()
    urls = f"--corpus.urls=[{tmp_path / 'mine'}]"
    finished = run(ranks, "jobs/benchmark", "--corpus", urls, *SMALL, *SMALLER, f"--report={tmp_path / 'a.json'}").succeeded()
    found = last_line(finished.output)
    assert found == json.loads((tmp_path / "a.json").read_text())
    assert [(row["images"], row["url"], row["image_format"]) for row in found["jobs"]] == [(32, str(tmp_path / "mine"), "jpg")]
    assert (
        found["complete"] and found["ranks"] == ranks and found["jobs"][0]["images_per_s"] > 0 and found["jobs"][0]["tail_s"] > 0
    )
    assert found["writing"][0]["megabytes"] == pytest.approx(0.05, rel=1) and found["writing"][0]["put_mb_s"] > 0
    assert found["verify"][0]["shards"] == 2 * found["cores"] and found["verify"][0]["verify_mb_s"] > 0
    assert len(re.findall(r"^\| url ", finished.output, re.MULTILINE)) == 3
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.fixture
def swift(tmp_path: Path) -> Iterator[Swift]:
    server = Swift(tmp_path / "swift", environment())
    server.start()
    yield server
    server.kill()


@pytest.mark.timeout(600)
def test_s3(swift: Swift) -> None:
    """Once, on a small scale; ``CORPUS="" pytest -s -k test_s3`` prints the tables for a server on this machine.

    Options of the benchmark may be given in the variable CORPUS, and in LINK_MB_S the rate of the link to the server.
    """
    needs("s3fs", "s3")
    link_mb_s = os.environ.get("LINK_MB_S")
    url = Link(swift.url, float(link_mb_s)).url if link_mb_s else swift.url
    variables = {**CREDENTIALS, "AWS_ENDPOINT_URL": url, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    make = "import s3fs; s3fs.S3FileSystem().mkdir('bench')"
    subprocess.run([sys.executable, "-c", make], env=os.environ | variables, check=True, timeout=60)
    command = ["jobs/benchmark", "--config", "configs/bench/corpus.yaml", "--corpus.urls=[s3://bench/corpus]"]
    given = os.environ["CORPUS"].split() if "CORPUS" in os.environ else [*SMALL, *SMALLER]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, *command, *given], env=os.environ | variables, cwd=ROOT, text=True, capture_output=True
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    found = last_line(done.stdout)
    assert {row["url"] for part in ("jobs", "writing", "verify") for row in found[part]} == {"s3://bench/corpus"}
