"""Rows that fail on one rank of a pair or both become errors, others of the batch do not, no rank waits; they can be retried."""

import json
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from hybridiff.corpus.record import sealed
from tests.dist.processes import run

SOUND = "a small red circle on a blue background at the left"
FAULTS = {
    "encode 0": "ValueError: the text encoder is broken",
    "encode 1": "ValueError: the text encoder is broken",
    "denoise 0": "RuntimeError: the denoiser is broken",
    "denoise 1": "RuntimeError: the denoiser is broken",
    "late 0": "RuntimeError: the denoiser is broken",
    "late 1": "RuntimeError: the denoiser is broken",
    "sampler 0": "RuntimeError: the sampler is broken",
    "sampler 1": "RuntimeError: the sampler is broken",
    "oom 1": "OutOfMemoryError: tried to allocate 40 GiB",
    "decode 0": "RuntimeError: the decoder is broken",
    "nan": "the latents or the decoded image are not finite",
    "black": "the image is black",
}


def arguments(directory: Path, ranks: int, prompts: list[str], **more: Any) -> list[str]:
    (directory / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "key": f"k{i}"}) + "\n" for i, p in enumerate(prompts))
    )
    given = {
        "data.prompts": directory / "prompts.jsonl",
        "data.batch_size": 4,
        "sampling.steps": 10,
        "model.path": "shapes-xl",
        "output.url": directory / "corpus",
        "output.shard_size": 8,
        "parallel.group_size": ranks,
        "parallel.timeout_s": 60,
        "trainer.accelerator": "cpu",
        "trainer.logger": False,
        "trainer.enable_progress_bar": False,
    }
    return [f"--{name}={value}" for name, value in (given | more).items()]


def rows(directory: Path) -> dict[str, dict[str, Any]]:
    table = ds.dataset(directory / "corpus" / "metadata", format="parquet").to_table().to_pylist()
    return {row["key"]: row for row in table}


@pytest.mark.timeout(500)
def test_rows_that_fail_on_one_rank_of_a_pair(tmp_path: Path) -> None:
    prompts = [prompt for fault in FAULTS for prompt in (f"{SOUND} poison {fault}", SOUND)]
    given = arguments(tmp_path, 2, prompts, **{"output.max_failed_fraction": 1.0})
    run(2, "tests/dist/faulty_generate.py", *given).succeeded()
    expected = [error for fault in FAULTS for error in (FAULTS[fault], None)]
    first = rows(tmp_path)
    assert [row["error"] for row in first.values()] == expected
    assert [row["status"] for row in first.values()] == ["ok" if error is None else "error" for error in expected]

    run(2, "jobs/generate.py", *given, "--retry_failed").succeeded()
    second = rows(tmp_path)
    assert {row["status"] for row in second.values()} == {"ok"}
    assert all(second[key] == row for key, row in first.items() if row["status"] == "ok")
    report = json.loads(run(1, "jobs/verify.py", str(tmp_path / "corpus")).succeeded().output.splitlines()[-1])
    assert report["ok"] == report["rows"] == len(prompts)


@pytest.mark.timeout(200)
def test_too_many_failed_rows_in_the_last_batch_are_reported_and_the_corpus_is_whole(tmp_path: Path) -> None:
    given = arguments(tmp_path, 1, [SOUND, f"{SOUND} poison denoise 0"])
    finished = run(1, "tests/dist/faulty_generate.py", *given)
    assert finished.code == 3, finished.output
    assert "stopped: 1 of 2 rows failed" in finished.output
    assert [row["status"] for row in rows(tmp_path).values()] == ["ok", "error"]


@pytest.mark.timeout(200)
def test_too_many_failed_rows_end_the_run(tmp_path: Path) -> None:
    prompts = [SOUND, *[f"{SOUND} poison denoise 0"] * 3, *[SOUND] * 36]
    finished = run(1, "tests/dist/faulty_generate.py", *arguments(tmp_path, 1, prompts, **{"output.max_failed_fraction": 0.05}))
    assert finished.code == 3, finished.output
    assert "stopped: 3 of 4 rows failed, more than output.max_failed_fraction allows" in finished.output
    assert list((tmp_path / "corpus").glob("commits/*")) == [] and list((tmp_path / "corpus").rglob("*.tmp")) == []


@pytest.mark.timeout(400)
def test_damaged_shards_cost_a_retry_themselves_alone(tmp_path: Path) -> None:
    prompts = [f"{SOUND} poison denoise 0", SOUND] * 3
    given = arguments(tmp_path, 1, prompts, **{"output.max_failed_fraction": 1.0, "output.shard_size": 2})
    run(1, "tests/dist/faulty_generate.py", *given).succeeded()
    corpus = tmp_path / "corpus"
    (corpus / "metadata/00000.parquet").write_bytes(b"damaged")
    (corpus / "commits/00001.json").write_text("{")
    retried = run(1, "jobs/generate.py", *given, "--retry_failed")
    assert retried.code == 1 and "Traceback" not in retried.output, retried.output
    remedy = "run hybridiff verify --repair, then hybridiff generate without --retry_failed"
    for index, name in enumerate(("metadata/00000.parquet", "commits/00001.json")):
        (line,) = [line for line in retried.output.splitlines() if f"shard {index} was not written" in line]
        assert f"ShardDamaged: {name} in {corpus} is damaged (" in line and line.endswith(remedy)
    assert f"the corpus is not whole: commits/00001.json in {corpus} is damaged (" in retried.output
    assert json.loads((corpus / "commits/00002.json").read_text())["failed"] == 0

    only = run(1, "jobs/generate.py", *given, "--only", "k0")
    assert only.code == 1 and "Traceback" not in only.output
    assert f"generate: error: ShardDamaged: metadata/00000.parquet in {corpus} is damaged (" in only.output
    repaired = run(1, "jobs/verify.py", str(corpus), "--repair")
    assert repaired.code == 1 and repaired.output.count("repair: commits/") == 2
    record = json.loads((corpus / "run.json").read_text())
    record["versions"]["torch"] = "1.0"
    (corpus / "run.json").write_text(json.dumps(sealed(record)))
    made = run(1, "jobs/generate.py", *given).succeeded().output
    assert made.count("the corpus was started with other versions") == 1 and 'torch is "1.0" there, ' in made
    report = json.loads(run(1, "jobs/verify.py", str(corpus)).succeeded().output.splitlines()[-1])
    assert report["ok"] == report["rows"] == len(prompts)


@pytest.mark.timeout(300)
def test_a_retry_tries_all_failed_rows_though_the_first_fails_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [f"{SOUND} poison denoise 0", *[f"{SOUND} poison encode 0"] * 4, *[SOUND] * 3]
    given = arguments(tmp_path, 1, prompts, **{"data.batch_size": 1})
    run(1, "tests/dist/faulty_generate.py", *given, "--output.max_failed_fraction=1").succeeded()
    assert [row["status"] for row in rows(tmp_path).values()] == ["error"] * 5 + ["ok"] * 3
    monkeypatch.setenv("HYBRIDIFF_TEST_CURED", "encode")
    finished = run(1, "tests/dist/faulty_generate.py", *given, "--retry_failed")
    assert [row["status"] for row in rows(tmp_path).values()] == ["error"] + ["ok"] * 7
    assert finished.code == 3 and "\n1 of 5 rows failed, more than output.max_failed_fraction allows" in finished.output


@pytest.mark.timeout(300)
def test_a_bad_row_among_the_few_that_are_left_ends_no_run(tmp_path: Path) -> None:
    given = arguments(tmp_path, 1, [*[SOUND] * 8, f"{SOUND} poison denoise 0", *[SOUND] * 3], **{"output.shard_size": 4})
    run(1, "tests/dist/faulty_generate.py", *given, "--trainer.limit_predict_batches=2").succeeded()
    assert len(rows(tmp_path)) == 8
    run(1, "tests/dist/faulty_generate.py", *given).succeeded()
    assert [row["status"] for row in rows(tmp_path).values()] == ["ok"] * 8 + ["error"] + ["ok"] * 3


@pytest.mark.timeout(300)
def test_a_pair_drops_a_lost_shard_and_generates_the_next(tmp_path: Path) -> None:
    prompts = [f"{SOUND} poison lose", *[SOUND] * 15]
    finished = run(2, "tests/dist/faulty_generate.py", *arguments(tmp_path, 2, prompts, **{"data.batch_size": 2}))
    assert "shard 0 was not written: OSError: the upload is gone" in finished.output and "exitcode  : 1" in finished.output
    generated = [[line for line in finished.output.splitlines() if line.startswith(f"rank {rank} generates")] for rank in (0, 1)]
    assert [line.replace("rank 0", "rank 1") for line in generated[0]] == generated[1]
    keys = " ".join(generated[0]).split()
    assert "k4" not in keys and "k6" not in keys, "the rest of a shard that can't be written"
    assert list(rows(tmp_path)) == [f"k{i}" for i in range(8, 16)]


@pytest.mark.timeout(300)
def test_a_pair_halves_the_batches_that_one_rank_has_no_memory_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora = {name: tmp_path / name for name in ("small", "halved")}
    for name, directory in corpora.items():
        directory.mkdir()
        if name == "halved":
            monkeypatch.setenv("HYBRIDIFF_TEST_FITS", "2")
        given = arguments(directory, 2, [SOUND] * 8, **{"data.batch_size": 4 if name == "halved" else 2, "sampling.steps": 6})
        output = run(2, "tests/dist/faulty_generate.py", *given).succeeded().output
    assert output.count("batches of 2 images fit in memory and are used from now on; larger ones run out of it") == 1
    for rank in (0, 1):
        keys = [line.split()[3:] for line in output.splitlines() if line.startswith(f"rank {rank} generates")]
        assert keys == [["k0", "k1", "k2", "k3"], ["k0", "k1"], ["k2", "k3"], ["k4", "k5"], ["k6", "k7"]]
    images = [rows(directory) for directory in corpora.values()]
    assert images[0] == images[1] and {row["status"] for row in images[0].values()} == {"ok"}
    tars = [next((directory / "corpus" / "images").glob("*.tar")).read_bytes() for directory in corpora.values()]
    assert tars[0] == tars[1]
