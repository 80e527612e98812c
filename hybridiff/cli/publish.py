"""``hybridiff publish``: copies a corpus, or the splits of a selection, to the Hugging Face Hub or to other storage.

    hybridiff publish runs/good hf://datasets/OWNER/NAME
    hybridiff publish runs/good s3://bucket/good
    hybridiff publish runs/mine hf://datasets/OWNER/NAME --partial

Only committed shards are published, and each file is compared with its commit marker. What is there already with the same content
is not sent again, so the same command goes on where it was stopped. The Hub's token comes from HF_TOKEN or hf auth login. The
card gets the model's licence, and the files that the Hub's viewer shows. The last line is JSON: {"url", "shards", "missing",
"files", "bytes", "skipped", "commits", "license"}. Exit codes: 0 it is there; 1 the storage failed, or a file is damaged; 2 a
mistake in what was given, such as a corpus that is not whole; 130 interrupted.
"""

import json
import sys

from hybridiff.cli import Parser, say, say_aside, storage_errors
from hybridiff.cluster.exit_codes import DONE
from hybridiff.errors import UsageError, amount
from hybridiff.secrets import redact, refuse_credentials

HUB = "hf://"


def main(arguments: list[str]) -> int:
    """Publishes a corpus."""
    given = parser().parse_args(arguments)
    for name, url in (("CORPUS", given.corpus), ("URL", given.url)):
        refuse_credentials(name, url)
    to_hub = given.url.startswith(HUB)
    if given.private and not to_hub:
        raise UsageError(f"--private is given with {given.url}; allowed: with hf://datasets/OWNER/NAME")
    if given.license is not None and not given.license.strip():
        raise UsageError("--license is empty; allowed: the name of a licence, such as openrail++ or apache-2.0")
    if given.license is not None and redact(given.license) != given.license:
        raise UsageError(f"--license is {given.license!r}, which holds credentials; allowed: the name of a licence")
    with storage_errors():
        return _publish(given.corpus, given.url, to_hub, given.partial, given.private, given.license)


def _publish(corpus: str, url: str, to_hub: bool, partial: bool, private: bool, licence_name: str | None) -> int:
    from hybridiff.export.licence import given_licence, model_licence
    from hybridiff.export.publication import read_publishable

    if to_hub:
        from hybridiff.export.hub import repository

        repository(url)
    found = read_publishable(corpus)
    if found.missing and not partial:
        shards = len(found.shards)
        raise UsageError(
            f"{corpus} is not whole: {found.missing} of {shards + found.missing} shards are missing; allowed: a whole corpus, or "
            f"--partial, which publishes the {shards} that are committed"
        )
    licence = given_licence(licence_name.strip()) if licence_name else model_licence(found.model, to_hub)
    if to_hub:
        from hybridiff.export.hub import HubDataset

        sent = HubDataset(repository(url), say_aside).publish(found, licence, private)
    else:
        from hybridiff.export.copy_corpus import publish_to_folder

        sent = publish_to_folder(found, url, licence, say_aside)
    commits = f" in {sent.commits} commits" if to_hub else ""
    say(
        [f"{url}: {amount(sent.files, 'file')} sent{commits}, {sent.skipped} were there; licence of the model: {licence.name}"],
        sys.stdout,
    )
    counts = {"shards": len(found.shards), "missing": found.missing, "files": sent.files, "bytes": sent.bytes}
    ending = {"skipped": sent.skipped, "commits": sent.commits, "license": licence.name}
    say([json.dumps({"url": url} | counts | ending)], sys.stdout)
    return DONE


def parser() -> Parser:
    """The parser of this command."""
    found = Parser("publish", __doc__)
    found.add_argument("corpus", metavar="CORPUS", help="directory of a corpus, or of the splits of hybridiff select")
    found.add_argument("url", metavar="URL", help="hf://datasets/OWNER/NAME, or a directory: a path or any fsspec url")
    help_partial = "publish the committed shards of a corpus that is not whole; the same command later adds the others"
    found.add_argument("--partial", action="store_true", help=help_partial)
    help_licence = "licence of the model for the card, such as openrail++; by default the one of the model's own card, if found"
    found.add_argument("--license", metavar="NAME", help=help_licence)
    found.add_argument("--private", action="store_true", help="make a new dataset on the Hub private")
    return found
