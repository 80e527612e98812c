"""Publishing a corpus to the Hub and to directories: what is there, what is sent again, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from hybridiff.corpus import Corpus, verify, write_card
from hybridiff.errors import StorageError, UsageError
from hybridiff.export import hub as hub_module
from hybridiff.export.copy_corpus import Sent, publish_to_folder
from hybridiff.export.hub import HubDataset, repository
from hybridiff.export.licence import Licence, given_licence, header, model_licence, published_card
from hybridiff.export.publication import Publishable, read_publishable
from hybridiff.export.select_options import parse_splits
from hybridiff.storage.folder import SMALL_FILE
from tests.corpus.corpora import files, make_corpus, record, write_shard
from tests.export.scored import score
from tests.export.test_selecting import run
from tests.optional import needs
from tests.services.hub import OWNER, TOKEN, StandInHub

NAME = f"{OWNER}/shapes"
MIT = given_licence("mit")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    made = make_corpus(str(tmp_path / "source"))
    write_card(made)
    return made


def published(server: StandInHub) -> dict[str, bytes]:
    return server.datasets[NAME]


def to_hub(corpus: Corpus, waits: list[float] | None = None, lines: list[str] | None = None, **options: Any) -> Sent:
    lines, waits = [] if lines is None else lines, [] if waits is None else waits
    return HubDataset(NAME, lines.append, waits.append).publish(read_publishable(corpus.url), MIT, **options)


def write_out(server: StandInHub, folder: Path) -> Path:
    """The dataset as somebody downloads it."""
    for name, content in published(server).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_a_corpus_becomes_a_dataset_in_one_commit(hub: StandInHub, corpus: Corpus, tmp_path: Path) -> None:
    score(corpus)
    sent = to_hub(corpus)
    here = files(corpus)
    names = {name for name in here if not name.startswith("stats/")}
    assert published(hub).keys() == {*names, ".gitattributes"} and len(hub.commits) == sent.commits == 1
    assert all(published(hub)[name] == here[name] for name in names - {"README.md"})
    assert sent.files == len(names) and sent.skipped == 0
    assert verify(Corpus(str(write_out(hub, tmp_path / "there")))).whole


def test_the_same_command_again_sends_nothing(hub: StandInHub, corpus: Corpus) -> None:
    hub.page = 3
    to_hub(corpus)
    again = to_hub(corpus)
    assert (again.files, again.commits, again.bytes) == (0, 0, 0) and again.skipped == 12 and len(hub.commits) == 1


def test_what_a_killed_command_has_uploaded_is_not_sent_again(
    hub: StandInHub, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(HubDataset, "_commit", kill)
        with pytest.raises(KeyboardInterrupt):
            to_hub(corpus)
    assert hub.count("PUT /stored/") == 6 and not hub.commits
    to_hub(corpus)
    assert hub.count("PUT /stored/") == 7, "only the contact sheet is new"
    assert len(hub.commits) == 1 and verify(Corpus(str(write_out(hub, tmp_path / "there")))).whole


def test_large_corpora_are_few_commits_of_whole_shards(hub: StandInHub, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "COMMIT_SHARDS", 2)
    monkeypatch.setattr(hub_module, "UPLOAD_SHARDS", 1)
    assert to_hub(corpus).commits == len(hub.commits) == 2
    for files_of in hub.commits:
        shards = {name.partition("/")[2].partition(".")[0] for name in files_of if name.startswith("commits/")}
        assert {f"images/{one}.tar" for one in shards} | {f"metadata/{one}.parquet" for one in shards} <= set(files_of)
    assert "run.json" in hub.commits[0] and "README.md" in hub.commits[1]


def test_a_changed_shard_is_sent_and_nothing_else(hub: StandInHub, corpus: Corpus) -> None:
    from hybridiff.corpus import ShardWriter
    from hybridiff.images import Encoder
    from tests.corpus.corpora import RUN_VALUES, USER_SCHEMA, result

    to_hub(corpus)
    corpus.start_run(record())
    writer = ShardWriter(corpus, 1, RUN_VALUES, USER_SCHEMA, Encoder())
    for number in range(4, 8):
        writer.write(result(number))
    writer.commit({})
    write_card(corpus)
    to_hub(corpus)
    data = [name for name in hub.commits[1] if not name.startswith(("README", "contact"))]
    assert sorted(data) == ["commits/00001.json", "images/00001.tar", "metadata/00001.parquet"]


@pytest.mark.parametrize(
    ("method", "path", "status", "headers", "waited"),
    [
        ("GET", "whoami", 429, {"Retry-After": "7"}, [7.0]),
        ("POST", "repos/create", 429, {"RateLimit": '"api";r=0;t=55'}, [55.0]),
        ("POST", "repos/create", 503, {}, [1.0]),
        ("POST", "/commit/", 500, {}, None),
        ("POST", "/preupload/", 429, {"Retry-After": "3"}, None),
        ("POST", "/batch", 503, {}, None),
        ("PUT", "/stored/", 500, {}, None),
        ("POST", "validate-yaml", 429, {"Retry-After": "9"}, [9.0]),
        ("GET", "/tree/", 504, {}, None),
    ],
)
def test_it_waits_when_told_to(
    hub: StandInHub, corpus: Corpus, method: str, path: str, status: int, headers: dict[str, str], waited: list[float] | None
) -> None:
    waits: list[float] = []
    hub.faults = [(method, path, status, headers)]
    to_hub(corpus, waits)
    assert not hub.faults and len(hub.commits) == 1
    assert waited is None or waits == waited


def test_it_waits_for_as_often_as_it_is_told_to_and_ends_after_an_hour(hub: StandInHub, corpus: Corpus) -> None:
    waits: list[float] = []
    lines: list[str] = []
    hub.faults = [("POST", "/commit/", 429, {"Retry-After": "100"})] * 8
    to_hub(corpus, waits, lines)
    assert len(hub.commits) == 1 and set(waits) <= {100.0}
    hub.faults = [("GET", "whoami", 429, {"Retry-After": "1000"})] * 4
    waits.clear()
    with pytest.raises(StorageError, match="did not accept it for 3000 s"):
        to_hub(corpus, waits, lines)
    assert waits == [1000.0] * 3 and all(TOKEN not in line for line in lines)


def test_tokens_and_signed_urls_are_not_shown(hub: StandInHub, corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    from hybridiff import cli

    hub.faults = [("PUT", "/stored/", 403, {})] * 9
    assert cli.main(["publish", corpus.url, f"hf://datasets/{NAME}"]) in (1, 2)
    shown = "".join(capsys.readouterr())
    assert TOKEN not in shown and "secret123" not in shown
    assert TOKEN not in "".join(data.decode(errors="replace") for data in files(corpus).values())


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [(None, NAME, "no token"), ("hf_wrong", NAME, "refuses the token"), (TOKEN, "other/shapes", "may not write to")],
)
def test_a_token_that_may_not_is_refused(
    hub: StandInHub, corpus: Corpus, token: str | None, name: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UsageError, match=message):
        HubDataset(name).publish(read_publishable(corpus.url), MIT)
    assert not hub.commits and not hub.large


def test_another_corpus_on_the_hub_is_not_overwritten(hub: StandInHub, corpus: Corpus, tmp_path: Path) -> None:
    to_hub(corpus)
    other = make_corpus(str(tmp_path / "other"), "jpg")
    before = dict(published(hub))
    with pytest.raises(UsageError, match=r"run\.json is of another corpus"):
        to_hub(other)
    assert published(hub) == before
    hub.datasets[NAME] = {"train.csv": b"a,b", ".gitattributes": b""}
    with pytest.raises(UsageError, match=r"holds train\.csv"):
        to_hub(corpus)
    assert len(hub.commits) == 1 and published(hub).keys() == {"train.csv", ".gitattributes"}


def test_a_damaged_file_is_never_committed(hub: StandInHub, corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "source" / "images" / "00001.tar"
    data = path.read_bytes()
    path.write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
    with pytest.raises(StorageError, match=r"images/00001\.tar .* is damaged"):
        to_hub(corpus)
    with pytest.raises(StorageError, match=r"images/00001\.tar .* is damaged"):
        publish_to_folder(read_publishable(corpus.url), str(tmp_path / "new"), MIT)
    assert not hub.commits and not (tmp_path / "new" / "commits" / "00001.json").exists()
    assert not (tmp_path / "new" / "images" / "00001.tar").exists()


def test_a_corpus_elsewhere_is_published_by_copies(hub: StandInHub, tmp_path: Path) -> None:
    made = make_corpus("memory://elsewhere/corpus")
    to_hub(made)
    assert published(hub)["images/00001.tar"] == made.read("images/00001.tar") and len(hub.commits) == 1


def test_a_part_is_published_and_completed_later(hub: StandInHub, tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path / "source"))
    corpus.start_run(record())
    write_shard(corpus, 1)
    found = read_publishable(corpus.url)
    assert found.missing == 2
    to_hub(corpus)
    card = published(hub)["README.md"].decode()
    assert "a part of the corpus: 1 of its 3 shards" in card and "images/00000.tar" not in published(hub)
    write_shard(corpus, 0)
    write_shard(corpus, 2)
    write_card(corpus)
    to_hub(corpus)
    assert "a part of" not in published(hub)["README.md"].decode() and "images/00001.tar" not in hub.commits[1]
    assert verify(Corpus(str(write_out(hub, tmp_path / "there")))).whole


def test_private_datasets(hub: StandInHub, corpus: Corpus) -> None:
    to_hub(corpus, private=True)
    assert hub.private[NAME]


def test_datasets_loads_what_is_published_with_images_and_rows(hub: StandInHub, corpus: Corpus, tmp_path: Path) -> None:
    datasets = needs("datasets", "dev")
    to_hub(corpus)
    folder = write_out(hub, tmp_path / "there")
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 9 and loaded[0]["png"].size == (16, 24) and loaded[0]["json"]["key"] == loaded[0]["__key__"]


def test_splits_are_published_together(hub: StandInHub, corpus: Corpus, tmp_path: Path) -> None:
    datasets = needs("datasets", "dev")
    score(corpus)
    run(corpus, tmp_path / "parts", splits=parse_splits("train:0.7,val:0.3"))
    parts = Corpus(str(tmp_path / "parts"))
    assert to_hub(parts).commits == 1
    folder = write_out(hub, tmp_path / "there")
    assert all(verify(Corpus(str(folder / name))).whole for name in ("train", "val"))
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "val"} and sum(len(part) for part in loaded.values()) == 9
    assert to_hub(parts).commits == 0
    sent = publish_to_folder(read_publishable(parts.url), str(tmp_path / "copy"), MIT)
    assert sent.skipped == 0 and verify(Corpus(str(tmp_path / "copy" / "train"))).whole


def test_a_directory_gets_a_corpus_and_what_is_there_is_skipped(corpus: Corpus, url: str) -> None:
    found = read_publishable(corpus.url)
    sent = publish_to_folder(found, url, MIT)
    there = Corpus(url)
    assert verify(there).whole and sent.files == 12 and files(there).keys() == {n for n in files(corpus) if "stats" not in n}
    again = publish_to_folder(found, url, MIT)
    assert (again.files, again.skipped) == (0, 12)


def test_an_interrupted_copy_goes_on(corpus: Corpus, tmp_path: Path) -> None:
    found, target = read_publishable(corpus.url), tmp_path / "new"
    publish_to_folder(found, str(target), MIT)
    whole = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    (target / "commits" / "00001.json").unlink()
    (target / "README.md").unlink()
    torn = target / "images" / "00001.tar"
    torn.write_bytes(torn.read_bytes()[:-1] + b"x")  # of the right size
    (target / "images" / ".00002.tar.0123456789abcdef.tmp").write_bytes(b"torn")
    sent = publish_to_folder(found, str(target), MIT)
    assert (sent.files, sent.skipped) == (3, 9)
    assert {path: path.read_bytes() for path in whole} == whole


def test_results_of_many_rows_are_published(corpus: Corpus, tmp_path: Path) -> None:
    corpus.publish("evaluation/full.parquet", b"")
    os.truncate(corpus.path("evaluation/full.parquet"), SMALL_FILE + 1)
    found, target = read_publishable(corpus.url), tmp_path / "new"
    assert [publish_to_folder(found, str(target), MIT).files for _ in range(2)] == [13, 0]
    assert (target / "evaluation" / "full.parquet").stat().st_size == SMALL_FILE + 1


def test_what_has_changed_there_since_its_marker_is_sent_again(corpus: Corpus, tmp_path: Path) -> None:
    found, target = read_publishable(corpus.url), tmp_path / "new"
    publish_to_folder(found, str(target), MIT)
    changed, marker = target / "images" / "00001.tar", target / "commits" / "00001.json"
    whole = changed.read_bytes()
    changed.write_bytes(whole[:-1] + b"x")  # of the same size
    os.utime(changed, (later := marker.stat().st_mtime + 60, later))
    assert (publish_to_folder(found, str(target), MIT).files, changed.read_bytes()) == (1, whole)


def test_a_shard_that_was_generated_again_replaces_the_one_that_is_there(corpus: Corpus, tmp_path: Path) -> None:
    publish_to_folder(read_publishable(corpus.url), str(tmp_path / "new"), MIT)
    (tmp_path / "source" / "commits" / "00001.json").unlink()
    corpus.start_run(record())
    write_shard(corpus, 1, "jpg")
    assert publish_to_folder(read_publishable(corpus.url), str(tmp_path / "new"), MIT).files >= 3
    assert not verify(Corpus(str(tmp_path / "new"))).problems


@pytest.mark.parametrize("there", ["other", "foreign", "itself", "inside"])
def test_directories_that_hold_something_else_are_refused(corpus: Corpus, tmp_path: Path, there: str) -> None:
    target = {"itself": tmp_path / "source", "inside": tmp_path / "source" / "x"}.get(there, tmp_path / "new")
    if there == "other":
        make_corpus(str(target), "jpg")
    if there == "foreign":
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="URL is"):
        publish_to_folder(read_publishable(corpus.url), str(target), MIT)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["README.md", "evaluation/scores.json"])
def test_nothing_outside_of_the_corpus_is_published(name: str, corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (link := Path(corpus.root) / name).parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match=f"^{name} in .* is a link out of it, to .*/secret; allowed: "):
        read_publishable(corpus.url)


def test_the_card_has_the_licence_of_the_models_card(tmp_path: Path, hub: StandInHub, corpus: Corpus) -> None:
    model = tmp_path / "model"
    model.mkdir()
    assert model_licence(str(model), False).name == "unknown" and model_licence("shapes-xl", False).name == "apache-2.0"
    (model / "README.md").write_text("---\nlicense: openrail++\ntags: [a]\n---\n# A model\n")
    assert model_licence(str(model), False).fields == {"license": "openrail++"}
    hub.models["a/b"] = {"license": "other", "license_name": "community", "license_link": "LICENSE.md"}
    found = model_licence("a/b", True)
    assert found.fields["license_link"] == "https://huggingface.co/a/b/blob/main/LICENSE.md" and found.name == "community"
    assert model_licence("no/such", True).name == "unknown" and model_licence("a/b", False).name == "unknown"
    card = published_card((tmp_path / "source" / "README.md").read_text(), found, "a/b", "images/*.tar")
    fields, body = header(card)
    assert fields["license"] == "other" and fields["configs"] == [{"config_name": "default", "data_files": "images/*.tar"}]
    assert fields["task_categories"] == ["text-to-image"] and body.count("## Licence") == 1 and "`community`" in body
    assert 'load_dataset("path/to/this/directory", data_files="metadata/*.parquet", split="train")' in body
    again = published_card(card, found, "a/b", "images/*.tar")
    assert again == card


def test_an_unknown_licence_is_said_to_be_unknown() -> None:
    unknown = Licence({"license": "unknown"}, "its card was not found")
    card = published_card("# Images\n\ntext\n", unknown, "shapes-xl", "metadata/*.parquet", "A note.\n")
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "unknown"
    assert "The licence of the model `shapes-xl` is not known" in card and card.index("A note.") < card.index("text")
    assert given_licence("My Licence 1.0").fields == {"license": "other", "license_name": "My Licence 1.0"}


def test_a_licence_that_the_hub_does_not_know_is_refused(hub: StandInHub, corpus: Corpus) -> None:
    found: Publishable = read_publishable(corpus.url)
    with pytest.raises(UsageError, match="the Hub refuses the card"):
        HubDataset(NAME).publish(found, given_licence("nosuch"))
    assert not hub.large and not hub.commits, "it is refused before anything is uploaded"


@pytest.mark.parametrize(
    "url", ["hf://somebody/shapes", "hf://datasets/shapes", "hf://datasets/a/b/c", "hf://models/a/b", "hf://"]
)
def test_urls_of_the_hub_that_are_no_dataset_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="allowed: hf://datasets/OWNER/NAME"):
        repository(url)
    assert repository("hf://datasets/a/b/") == "a/b"


def test_embedded_images_are_what_the_viewer_shows(hub: StandInHub, tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path / "source"))
    configuration = json.loads(json.dumps(record().configuration))
    configuration["output"]["embed_images"] = True
    corpus.start_run(record(configuration=configuration, plan={"rows": 4, "shards": 1, "content": "0"}))
    write_shard(corpus, 0)
    to_hub(corpus)
    fields, _ = header(published(hub)["README.md"].decode())
    assert fields["configs"][0]["data_files"] == "metadata/*.parquet"
