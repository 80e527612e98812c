"""The dataset card of a finished corpus."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hybridiff.corpus.columns import FIELDS
from hybridiff.corpus.contact_sheet import contact_sheet
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.damage import reading
from hybridiff.corpus.failures import totals
from hybridiff.corpus.names import CARD, RUN_RECORD, SHEET, metadata_name
from hybridiff.errors import UsageError

MEANINGS = {
    "key": "names the image; unique in the dataset",
    "prompt": "text it was made from",
    "negative_prompt": "text it was steered away from",
    "seed": "of its noise",
    "status": "`ok` or `error`",
    "error": "why it failed",
    "file": "the image: tar file, then the name inside",
    "width": "pixels",
    "height": "pixels",
    "sha256": "of the image file",
    "guidance_scale": "weight of classifier-free guidance",
    "steps": "sampling steps",
    "scheduler": "noise scheduler",
    "model": "what drew it",
    "revision": "of the model",
    "version": "of Hybridiff",
    "dtype": "of the model's arithmetic",
    "device": "that it was drawn on",
    "group_size": "ranks that drew it together",
    "schedule": "which steps were computed in full",
    "schedule_options": "JSON; those that are not in it have their defaults",
    "steps_full": "steps with both guidance branches",
    "steps_half": "steps with one branch",
    "steps_skipped": "steps that were predicted from earlier ones, with no computation",
    "tau1": "the first step that was not full, counted from 0; null if all were full",
    "tau2": "the step after the last that was not full",
    "discrepancy": "between the branches, one value per full step",
    "prompt_truncated": "whether the text encoder could not read all of the prompt",
    "image": "the image file itself",
}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_LARGER = ((10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"))
_TEMPLATE = """---
pretty_name: Images by {pretty_model}
task_categories:
- text-to-image
tags:
- synthetic
- webdataset
- hybridiff
size_categories:
- {size}
configs:
- config_name: default
  data_files: metadata/*.parquet
---

# {ok} images, made from {rows} prompts

Synthetic images, drawn by the text-to-image model `{model}` with Hybridiff; none is a photograph.

| | |
|---|---|
| model | `{model}`, revision `{revision}` |
| sampling | {steps} steps, guidance {guidance}, seed {seed} |
| schedule | `{schedule}` |
| images | {ok} ({failed} of {rows} requested failed), {image_format}, {shards} shards |

![The first images](contact-sheet.png)

## Reading it

Rows, one per requested image, in the order of the prompts:

```python
from datasets import load_dataset
rows = load_dataset("path/to/this/directory", split="train")

import pyarrow.dataset
rows = pyarrow.dataset.dataset("path/to/this/directory/metadata", format="parquet")
```

Images, each with its prompt (`txt`){row}:

```python
import webdataset
images = webdataset.WebDataset("images/{braces}.tar", shardshuffle=False).decode("pil")
for sample in images:
    sample["__key__"], sample["{image_format}"], sample["txt"]{row_sample}

from datasets import load_dataset
images = load_dataset("webdataset", data_files="images/*.tar", split="train", streaming=True)
```

The file of a shard in `commits/` holds the sizes and SHA-256 of its files; `run.json` holds the whole configuration.

## Columns

| column | type | meaning |
|---|---|---|
{columns}
"""


def finish(corpus: Corpus) -> dict[str, int] | None:
    """Writes the dataset card and the contact sheet if every shard is committed; None if not.

    Returns:
        ``rows``, ``ok`` and ``failed`` of the whole corpus, which takes reading every marker.

    Raises:
        UsageError: If there is no run record.
        ShardDamaged: If what is read of a shard is damaged.

    The same corpus gets the same bytes, however often this is called.
    """
    run = corpus.read_run()
    if run is None:
        raise UsageError(f"{corpus.url}: there is no {RUN_RECORD}, so it is no corpus")
    shards = range(run["plan"]["shards"])
    if not corpus.committed().issuperset(shards):
        return None
    counts = totals(corpus, shards)
    corpus.publish(SHEET, contact_sheet(corpus, shards))
    corpus.publish(CARD, dataset_card(run, counts, _schema(corpus)).encode())
    return counts


def finished(corpus: Corpus) -> bool:
    """Whether there is a dataset card from after the last commit, by the storage's clock: one listing, no marker is read."""
    written, commits = corpus.modified(CARD), corpus.commit_times()
    return written is not None and bool(commits) and written > max(commits.values())


def dataset_card(run: dict[str, Any], counts: dict[str, int], schema: pa.Schema) -> str:
    """The text of README.md.

    Args:
        run: The run record.
        counts: ``rows``, ``ok`` and ``failed`` of the whole corpus.
        schema: Of the Parquet files.
    """
    options = run["configuration"]
    shards = run["plan"]["shards"]
    lines = (f"| `{column.name}` | {column.type} | {_meaning(column.name)} |" for column in schema)
    model, sidecar = _option(options, "model.path"), _option(options, "output.sidecar") != "none"
    return _TEMPLATE.format(
        pretty_model="".join(c for c in str(model) if c.isalnum() or c in "-_./ "),
        size=size_category(counts["rows"]),
        model=model,
        revision=_option(options, "model.weights"),
        steps=_option(options, "sampling.steps"),
        guidance=_option(options, "sampling.guidance_scale"),
        seed=_option(options, "sampling.seed"),
        schedule=_option(options, "parallel.schedule.class_path"),
        image_format=_option(options, "output.image_format"),
        braces=f"{{00000..{max(0, shards - 1):05d}}}" if shards != 1 else "00000",
        shards=shards,
        columns="\n".join(lines),
        row=" and its row (`json`)" if sidecar else "; `key` joins it with its row",
        row_sample=', sample["json"]' if sidecar else "",
        **counts,
    )


def size_category(rows: int) -> str:
    """The hub's name for a data set of so many rows."""
    return next((name for limit, name in _SIZES + _LARGER if rows < limit), "n>1T" if rows >= 10**12 else "10B<n<100B")


def _meaning(name: str) -> str:
    return MEANINGS.get(name, "carried over from the prompt table")


def _option(options: Any, name: str) -> Any:
    for part in name.split("."):
        options = options.get(part) if isinstance(options, dict) else None
    return "-" if options is None else options


def _schema(corpus: Corpus) -> pa.Schema:
    if not corpus.committed():
        return FIELDS
    with reading(corpus, 0, metadata_name(0)), corpus.fs.open(corpus.path(metadata_name(0)), "rb") as handle:
        return pq.read_schema(handle)
