"""Random input and random damage, shrunk by hypothesis to what fails, which prints the script that repeats it.

By default the inputs are the same each time. HYBRIDIFF_FUZZ_S gives it a time in seconds instead of a number of rounds, and
HYBRIDIFF_FUZZ_SEED chooses other inputs.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.optional import needs

hypothesis = needs("hypothesis", "dev")
from hypothesis import HealthCheck, Phase, given, note, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tests.fuzz.outcomes import DOMAINS, Edit, repeat, script  # noqa: E402
from tests.prompts import test_reference  # noqa: E402

ROUNDS = 4  # of 20 inputs, for each domain
SECONDS = float(os.environ.get("HYBRIDIFF_FUZZ_S", "0"))
SEED = int(os.environ.get("HYBRIDIFF_FUZZ_SEED", "0"))
READERS = ("test_json", "test_csv_of_pythons_own_writer", "test_parquet", "test_plain_text")
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, -1, 0, 1, 2**63, 1e300, "", "x", "../x", "/dev/zero", "\n", "\x00", "ä" * 300, [], {}, [[]], {"a": 1}]
)
PIECES = st.one_of(
    st.binary(max_size=20), st.sampled_from([b"\n", b'"', b",", b"\t", b"\xff", b"[" * 5000, b"{}", b"\x00" * 512])
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(int(600 + 20 * SECONDS))]


@st.composite
def edits_of(draw: Any, names: list[str]) -> list[Edit]:
    """One to three changes to files of these names."""
    found: list[Edit] = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(names))
        json_like = name.endswith((".json", ".jsonl", ".yaml"))
        action = draw(st.sampled_from(["flip", "cut", "insert", "write", "remove", *(["json"] * 4 if json_like else [])]))
        place = draw(st.one_of(st.integers(0, 600), st.integers(0, 10_000_000)))
        value = {"flip": st.integers(0, 7), "insert": PIECES, "write": PIECES, "json": ODD}.get(action, st.none())
        found.append((name, action, place, draw(value)))
    return found


def names_of(domain: str) -> list[str]:
    """The files that a domain's good input has."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / domain
        DOMAINS[domain][0](folder)
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


OPTIONS = settings(
    max_examples=20,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def until_the_time_is_up(seconds: float, test: Callable[[], None]) -> None:
    """Runs a test of hypothesis's with one seed after another, ``ROUNDS`` of them if no time is given."""
    deadline = time.monotonic() + seconds
    for done, number in enumerate(itertools.count(SEED), 1):
        hypothesis.seed(number)(test)()
        if done >= ROUNDS and time.monotonic() > deadline:
            break


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_good_input_is_right(domain: str) -> None:
    repeat(domain, [])


@pytest.mark.parametrize("domain", DOMAINS)
def test_random_damage_is_seen_or_does_no_harm(domain: str) -> None:
    @OPTIONS
    @given(edits_of(names_of(domain)))
    def damage(edits: list[Edit]) -> None:
        note(script(domain, edits))
        repeat(domain, edits)

    until_the_time_is_up(SECONDS / (len(DOMAINS) + 1), damage)


def test_random_tables_are_read_as_a_plain_reader_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    @OPTIONS
    @given(st.sampled_from(READERS), st.integers(0, 2**32))
    def read(reader: str, seed: int) -> None:
        call = f"test_reference.{reader}(Path(tempfile.mkdtemp()), pytest.MonkeyPatch(), seed={seed})"
        note(f"python -c 'import pytest, tempfile; from pathlib import Path; from tests.prompts import test_reference; {call}'")
        with tempfile.TemporaryDirectory() as folder:
            getattr(test_reference, reader)(Path(folder), monkeypatch, seed=seed)

    until_the_time_is_up(SECONDS / (len(DOMAINS) + 1), read)
