"""Where prompts come from: paths as a shell finds them, special files, archives, encodings, delimiters."""

import bz2
import gzip
import lzma
import os
import zipfile
from pathlib import Path

import pytest

from hybridiff.config import DataConfig
from hybridiff.errors import StorageError, UsageError
from tests.prompts.planning import both, plan_of, refusal


def prompts_of(*given: str | Path, **options: object) -> list[str]:
    return [sample.prompt for sample in both(*given, **options).shard(0).samples]


NAMES = ["a b", "a::b", "a?b", "a#b", "a%20b", "a[1]", "[a]", "a*", "~", "file:x", "a=b&c", "C:\\x", "ü", "-a", "{a,b}"]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_exists_is_that_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for other in ("a", "1", "ab", "a20b"):  # what a glob or a quoted name would find
        (tmp_path / f"{other}.txt").write_text("another")
    (folder / f"{name}.txt").write_text("this")
    (tmp_path / f"{name}.txt").write_text("this")
    assert prompts_of(folder / f"{name}.txt") == ["this"]
    monkeypatch.chdir(tmp_path)
    assert prompts_of(f"{name}.txt") == prompts_of(f"./{name}.txt") == ["this"]


def test_globs_and_the_home_directory_are_found_as_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    for name in ("1.txt", "2.txt", "x.txt", "deep/3.txt", "deep/er/4.txt", ".hidden.txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prompts_of("~/[12].txt") == ["1.txt", "2.txt"]
    assert prompts_of("~/?.txt") == ["1.txt", "2.txt", "x.txt"]
    assert prompts_of("~/deep/**/*.txt") == ["deep/3.txt", "deep/er/4.txt"]
    assert refusal("~/[89].txt") == "~/[89].txt: matches no file"
    assert refusal("~/9.txt") == "~/9.txt: no such file"
    assert prompts_of(f"file://{tmp_path}/x.txt") == ["x.txt"]


def test_special_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "null.jsonl").symlink_to("/dev/null")
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    for name, kind in {"fifo.csv": "a FIFO", "zero.txt": "a character device", "null.jsonl": "a character device"}.items():
        assert refusal(tmp_path / name) == f"{tmp_path}/{name}: is {kind}; allowed: regular files"
        assert refusal(f"file://{tmp_path}/{name}") == f"file://{tmp_path}/{name}: is {kind}; allowed: regular files"
    assert refusal(tmp_path / "*.parquet").startswith(f"{tmp_path}/folder.parquet: is a directory; allowed: ")
    assert refusal(tmp_path / "gone.txt") == f"{tmp_path}/gone.txt: no such file"


def zipped(path: Path, *members: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(name, "" if name.endswith("/") else f"prompt\n{name}\n")
    return path


def test_a_zip_is_read_whole_or_refused(tmp_path: Path) -> None:
    assert prompts_of(zipped(tmp_path / "a.csv.zip", "a.csv")) == ["a.csv"]
    assert prompts_of(zipped(tmp_path / "b.csv.zip", "b/", "b/b.csv", "__MACOSX/", "__MACOSX/b/._b.csv")) == ["b/b.csv"]
    two = zipped(tmp_path / "c.csv.zip", "a.csv", "b.csv")
    assert refusal(two) == f"{two}: holds 2 files ('a.csv', 'b.csv'); allowed: one, or unpack it and name them"
    many = zipped(tmp_path / "d.csv.zip", *(f"{n}.csv" for n in range(9)))
    assert "holds 9 files ('0.csv', '1.csv', '2.csv', ...)" in refusal(many)
    assert "holds 0 files" in refusal(zipped(tmp_path / "e.csv.zip"))


def test_archives_of_several_streams_are_read_whole(tmp_path: Path) -> None:
    import pyarrow as pa

    pack = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    }
    for suffix, compress in pack.items():
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(compress(b"one\ntwo\n") + compress(b"three\n"))
        assert prompts_of(path) == ["one", "two", "three"]
        path.write_bytes(compress(b"one\ntwo\n" * 1000)[:-9])
        assert refusal(path).startswith(f"{path}: cannot be read: "), "half an archive"


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-32-le", "utf-8", "UTF_8", "latin-1"])
def test_encodings(tmp_path: Path, suffix: str, encoding: str) -> None:
    text = {".txt": "käse\nrösti", ".jsonl": '{"prompt": "käse"}\n{"prompt": "rösti"}'}.get(suffix, "prompt\nkäse\nrösti\n")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(text.encode(encoding))
    assert prompts_of(path, encoding=encoding) == ["käse", "rösti"]
    if encoding == "cp1252":
        assert refusal(path).endswith("invalid continuation byte; see data.encoding")


MARKS = {"utf-8": b"\xef\xbb\xbf", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff", "utf-32-le": b"\xff\xfe\0\0"}


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize(("encoding", "mark"), MARKS.items())
def test_files_that_say_their_encoding(tmp_path: Path, suffix: str, encoding: str, mark: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    text = {".txt": "käse\n", ".jsonl": '{"prompt": "käse"}'}.get(suffix, "prompt\nkäse\n")
    path.write_bytes(mark + text.encode(encoding))
    short = encoding[:6].rstrip("-")
    for given in (encoding, short):
        assert prompts_of(path, encoding=given) == ["käse"]
    for given in {"utf-8", "utf-16", "cp1252"} - {short}:
        assert refusal(path, encoding=given) == f"{path}: is {short} text; allowed: {given}, or data.encoding={short}"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_text_that_does_not_say_its_encoding_is_no_other_text(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes({".jsonl": '{"prompt": "a"}'}.get(suffix, "prompt\na red circle\n").encode(encoding))
    assert refusal(path) == f"{path}, line 1: is full of NUL characters; allowed: text; see data.encoding"


def test_files_that_have_the_name_of_a_table_and_are_none(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "real.parquet")
    zipped(tmp_path / "real.zip", "a.csv")
    kinds = {
        "a .gz file": gzip.compress(b"prompt\na\n"),
        "an .xz file": lzma.compress(b"prompt\na\n"),
        "a .zst file": pa.compress(b"prompt\na\n", codec="zstd", asbytes=True),
        "a .zip or .xlsx file": (tmp_path / "real.zip").read_bytes(),
        "a .parquet file": (tmp_path / "real.parquet").read_bytes(),
        "a PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "a web page": b"<!DOCTYPE html><html><body>404</body></html>\n",
        "a pointer to a file of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }
    for kind, content in kinds.items():
        for suffix in (".csv", ".jsonl", ".txt", ".parquet"):
            if suffix not in kind:
                for name, stored in {f"a{suffix}": content, f"a{suffix}.gz": gzip.compress(content)}.items():
                    (tmp_path / name).write_bytes(stored)
                    expected = f"{tmp_path}/{name}: is {kind}; allowed: a {suffix} file, as its name says"
                    assert refusal(tmp_path / name) == expected
    (tmp_path / "likely.txt").write_text(texts := "%PDF-like noise\nPK, a logo\n<html> as graffiti\n{curly}\n")
    assert prompts_of(tmp_path / "likely.txt") == texts.splitlines()
    (tmp_path / "cut.parquet").write_bytes(kinds["a .parquet file"][:-20])
    assert refusal(tmp_path / "cut.parquet").startswith(f"{tmp_path}/cut.parquet: is not a readable Parquet file: ")


def test_storage_that_does_not_answer_is_named_with_the_reason() -> None:
    with pytest.raises(StorageError, match=r"^http://127\.0\.0\.1:1/a\.csv: cannot be read: Cannot connect to host"):
        plan_of("http://127.0.0.1:1/a.csv")


def test_delimiters(tmp_path: Path) -> None:
    for name, separator in {"semi.csv": ";", "tab.csv": "\t", "bar.tsv": "|", "comma.tsv": ","}.items():
        path = tmp_path / name
        path.write_text(
            f'prompt{separator}style\r\n"a red{separator} small circle"{separator}flat\r\na blue square{separator}\r\n'
        )
        assert prompts_of(path, delimiter=separator) == [f"a red{separator} small circle", "a blue square"]
        message = refusal(path)
        assert message.startswith(f"{path}: looks as if its cells were separated by {separator!r}: its header is 'prompt")
        assert message.endswith(f"or data.delimiter={separator!r}")
    assert prompts_of(tmp_path / "tab.csv", delimiter="\\t") == prompts_of(tmp_path / "tab.csv", delimiter="tab")


@pytest.mark.parametrize(
    "options",
    [
        {"delimiter": ""}, {"delimiter": ";;"}, {"delimiter": '"'}, {"delimiter": "\n"}, {"encoding": "utf-9"},
        {"encoding": "base64"}, {"encoding": "\0"}, {"empty_prompts": "skip"}, {"max_text": 0}, {"max_text": 1.5},
        {"max_rows": -1},
        {"max_expansion": 0.5}, {"max_expansion": float("nan")}, {"max_row_group": 0}, {"prompts": []}, {"prompts": ""},
        {"prompts": ["a", 5]}, {"prompt_column": "seed"}, {"prompt_column": "negative_prompt"},
    ],
)  # fmt: skip
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=rf"^data\.{next(iter(options))} is .*; allowed: "):
        DataConfig(**{"prompts": "a.txt", **options})  # type: ignore[arg-type]
