"""One row drawn again by the job that drew it."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.dist.processes import run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.timeout(400)
def test_a_pair_draws_a_row_again_as_its_batch_was_drawn(tmp_path: Path) -> None:
    table, corpus = tmp_path / "prompts.jsonl", tmp_path / "corpus"
    prompts = ("a small red circle", "a large green square", "a small yellow ring", "a large cyan triangle", "a blue cross")
    table.write_text("".join(json.dumps({"key": f"k{i}", "prompt": p}) + "\n" for i, p in enumerate(prompts)))
    given = {
        "data.prompts": table,
        "data.batch_size": 2,
        "sampling.steps": 12,
        "model.path": "shapes-xl",
        "output.url": corpus,
        "output.shard_size": 3,
        "parallel.group_size": 2,
        "trainer.accelerator": "cpu",
        "trainer.logger": "false",
    }
    job = ["jobs/generate.py", *(f"--{name}={value}" for name, value in given.items())]
    run(2, *job).succeeded()
    before = contents(corpus)
    rows = pq.read_table(corpus / "metadata/00001.parquet").to_pylist()
    assert {(row["group_size"], row["dtype"], row["schedule_options"]) for row in rows} == {(2, "float32", "{}")}
    assert f"k3: the same bytes (SHA-256 {rows[0]['sha256']})" in run(2, *job, "--only", "k3").succeeded().output
    assert contents(corpus) == before, "nothing is written"
    rows[0]["sha256"] = "0" * 64
    pq.write_table(pa.Table.from_pylist(rows), corpus / "metadata/00001.parquet")
    differs = run(2, *job, "--only", "k3")
    assert differs.code == 1 and "k3: other bytes than on cpu " in differs.output and "PSNR inf dB" in differs.output
    missing = run(1, *[part for part in job if "group_size" not in part], "--parallel.group_size=1", "--only", "k9")
    assert missing.code == 2 and "parallel.group_size is 2 there, 1 here" in missing.output
