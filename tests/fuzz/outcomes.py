"""What must come of damaged input, for each kind of input: the right result, or one line of a known error, within bounds.

``repeat`` makes the input from edits of a good one and judges it; that is also what the script of a failing input calls.
"""

import functools
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hybridiff.cli.config import parse
from hybridiff.config import JobConfig, ModelConfig, SamplingConfig
from hybridiff.corpus import Corpus, repair, verify
from hybridiff.errors import StorageError, UsageError
from hybridiff.models.facts import check_model, read_facts, weights_revision
from hybridiff.storage.folder import Folder
from tests.corpus.corpora import files as corpus_files
from tests.corpus.corpora import make_corpus
from tests.prompts.planning import plan_of, samples_of
from tests.storage.leases import Clock, leases

# What one input may take. CPU seconds of this process alone, tens of times what a good input takes, so that a busy machine is no
# matter; hostile input that a reader unfolds or goes through again and again takes minutes. Memory beyond what the process has.
CPU_S, MEMORY = 10.0, 1 << 30
Edit = tuple[str, str, int, Any]  # file, what is done to it, where, with what


def repeat(domain: str, edits: Sequence[Edit]) -> None:
    """Makes the input of a domain from a good one and judges what comes of it.

    Raises:
        AssertionError: it is neither right, nor one line, or takes too much.
    """
    make, judge = DOMAINS[domain]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place) / domain
        make(folder)
        good = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for edit in edits:
            apply(folder, *edit)
        bad = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        judge(folder, good == bad)
        assert time.process_time() - started < CPU_S, "it takes too long"
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY, "it takes too much memory"


def script(domain: str, edits: Sequence[Edit]) -> str:
    """The shell script that judges an input once more."""
    return f"python - <<'END'\nfrom tests.fuzz.outcomes import repeat\nrepeat({domain!r}, {list(edits)!r})\nEND"


def apply(folder: Path, name: str, action: str, place: int, value: Any) -> None:
    """Changes a file of a folder: ``flip``, ``cut``, ``insert``, ``write``, ``remove``, or ``json``, a value in a JSON file."""
    path = folder / name
    data = path.read_bytes() if path.is_file() else b""
    place = place % (len(data) + 1)
    if action == "remove":
        path.unlink(missing_ok=True)
        return
    if action == "flip":
        place = min(place, len(data) - 1)
        data = data if place < 0 else data[:place] + bytes([data[place] ^ (1 << value % 8)]) + data[place + 1 :]
    elif action == "cut":
        data = data[:place]
    elif action == "insert":
        data = data[:place] + value + data[place:]
    elif action == "write":
        data = value
    elif action == "json":
        try:
            parsed = json.loads(data)
        except (ValueError, RecursionError):
            return
        data = json.dumps(_replaced(parsed, place, value)).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _replaced(parsed: Any, place: int, value: Any) -> Any:
    """JSON with one of its values replaced, counted in order."""
    count = -1

    def walk(one: Any) -> Any:
        nonlocal count
        count += 1
        if count == chosen:
            return value
        if isinstance(one, dict):
            return {name: walk(inner) for name, inner in one.items()}
        return [walk(inner) for inner in one] if isinstance(one, list) else one

    chosen = -1
    walk(parsed)
    chosen, count = place % (count + 1), -1
    return walk(parsed)


def one_line(error: Exception) -> None:
    """Asserts that an error is fit for its user."""
    assert "\n" not in str(error) and 0 < len(str(error)) < 2000, str(error)


ROWS = [
    {"prompt": "a red circle", "key": "k1", "seed": 1, "x": 0.5},
    {"prompt": "a blue, square", "key": "k2", "seed": 2, "x": 2.0},
]
CELLS = [[str(value) for value in row.values()] for row in ROWS]
TABLES = ("a.jsonl", "a.csv", "a.tsv", "a.txt", "a.parquet")


def make_tables(folder: Path) -> None:
    """The same rows in each format."""
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, mark in (("a.csv", ","), ("a.tsv", "\t")):
        cells = [[f'"{cell}"' if mark in cell else cell for cell in row] for row in [list(ROWS[0]), *CELLS]]
        (folder / name).write_text("".join(mark.join(row) + "\n" for row in cells))
    (folder / "a.txt").write_text("".join(f"{row['prompt']}\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")


def judge_tables(folder: Path, is_good: bool) -> None:
    """Each table is read, or refused in one line."""
    for name in TABLES:
        if not (folder / name).is_file():
            continue
        try:
            plan = plan_of(folder / name)
            samples = samples_of(plan)
        except (UsageError, StorageError) as error:
            one_line(error)
            assert not is_good, name
            continue
        assert len(samples) == plan.rows and len({sample.key for sample in samples}) == plan.rows
        if is_good:
            assert [sample.prompt for sample in samples] == [row["prompt"] for row in ROWS]


def make_the_corpus(folder: Path) -> None:
    """A whole corpus of three shards."""
    shutil.copytree(_whole_corpus(), folder)


@functools.cache
def _whole_corpus() -> str:
    place = tempfile.mkdtemp()
    make_corpus(f"{place}/corpus")
    return f"{place}/corpus"


def judge_corpus(folder: Path, is_good: bool) -> None:
    """A corpus is whole if none of what its markers promise has changed; repairing it removes markers alone."""
    corpus = Corpus(str(folder))
    try:
        report = verify(corpus, 1)
    except UsageError as error:
        one_line(error)
        assert not is_good
        return
    good = {name: data for name, data in corpus_files(Corpus(_whole_corpus())).items() if not name.startswith("stats/")}
    found = corpus_files(corpus)
    same = all(found.get(name) == data for name, data in good.items())
    assert report.whole == same or (report.whole and _only_spelled(found, good)), report.problems
    assert all("\n" not in line for line in [*report.problems, *report.notes])
    repair(corpus, report)
    after = corpus_files(corpus)
    gone = {name for name in found if name not in after and not name.startswith("leases/")}
    assert all(name.startswith("commits/") for name in gone), gone
    assert all(after[name] == found[name] for name in after if name in found and not name.startswith("leases/"))


def _only_spelled(found: dict[str, bytes], good: dict[str, bytes]) -> bool:
    """Whether files differ from good ones in nothing but how their JSON is written."""
    try:
        return all(found[name] == data or json.loads(found[name]) == json.loads(data) for name, data in good.items())
    except (KeyError, ValueError, RecursionError):
        return False


def make_configuration(folder: Path) -> None:
    """A configuration with most kinds of options."""
    folder.mkdir()
    options = {
        "model": {"path": "shapes-xl", "lora": [{"path": "a.safetensors", "scale": 0.5}], "scheduler_options": {"shift": 2.0}},
        "sampling": {"steps": 4, "guidance_scale": 5.0, "negative_prompt": "#x", "height": None},
        "parallel": {"schedule": {"class_path": "adaptive", "init_args": {"tolerance": 0.2}}, "group_size": 1},
        "data": {"prompts": ["p.txt"], "delimiter": ";", "lease_s": 120.0},
        "output": {"url": "out", "image_format": "jpg", "quality": 90, "columns": ["style"]},
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    (folder / "c.yaml").write_text(json.dumps(options))


def judge_configuration(folder: Path, is_good: bool) -> None:
    """A configuration is parsed or refused in one line."""
    try:
        config = parse([f"--config={folder / 'c.yaml'}"]).config
    except (UsageError, SystemExit) as error:
        assert isinstance(error, UsageError), "the parser ends the process"
        one_line(error)
        assert not is_good
    else:
        assert isinstance(config, JobConfig)


MODEL = Path(str(files("hybridiff") / "assets" / "shapes-xl"))


def make_model(folder: Path) -> None:
    """A copy of a bundled model."""
    shutil.copytree(MODEL, folder)


def judge_model(folder: Path, is_good: bool) -> None:
    """A model is refused in one line, or known as another one than the good one if a file of it that is loaded has changed."""
    model = ModelConfig(str(folder))
    try:
        facts = read_facts(model)
        check_model(model, SamplingConfig(), facts)
        revision = weights_revision(model, facts)
    except UsageError as error:
        one_line(error)
        assert not is_good
        return
    loaded = {name: path.read_bytes() for name, path in facts.files.items()}
    good = {name: path.read_bytes() for name, path in read_facts(ModelConfig("shapes-xl")).files.items()}
    own = weights_revision(ModelConfig("shapes-xl"), read_facts(ModelConfig("shapes-xl")))
    assert (revision == own) == (loaded == good)


def make_leases(folder: Path) -> None:
    """Two leases of a living owner."""
    folder.mkdir()
    first = leases(Folder(str(folder)), "first", Clock())
    assert first.acquire("00000") and first.acquire("00001")


def judge_leases(folder: Path, is_good: bool) -> None:
    """Whatever is in the files: no two owners hold a lease, and within an hour one can acquire it."""
    clock = Clock()
    owners = [leases(Folder(str(folder)), name, clock) for name in ("second", "third")]
    for name in ("00000", "00001"):
        acquired = [owner.acquire(name) for owner in owners]
        assert sum(acquired) <= (0 if is_good else 1)
    for name in {"00000", "00001"} - owners[0].held - owners[1].held:
        assert owners[0].wait(name, stop=lambda: clock.passed_s > 3600, look_s=60.0)
        assert owners[0].acquire(name) and not owners[1].acquire(name)


Domain = tuple[Callable[[Path], None], Callable[[Path, bool], None]]
DOMAINS: dict[str, Domain] = {
    "tables": (make_tables, judge_tables),
    "corpus": (make_the_corpus, judge_corpus),
    "configuration": (make_configuration, judge_configuration),
    "model": (make_model, judge_model),
    "leases": (make_leases, judge_leases),
}
