"""Which GPUs of a node form groups: those with the fastest links between them, as ``nvidia-smi topo -m`` tells."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from operator import itemgetter

from hybridiff.errors import UsageError

SLOWEST = ("SYS", "NODE", "PHB", "PXB", "PIX")  # PCI Express, from across sockets to one switch; NV<lanes> is faster
ASK_S = 60.0  # all ranks of a node ask at once, perhaps of GPUs that sleep
_FASTEST = 10**6
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")

Links = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Placement:
    """The GPUs of a node in the order of its ranks.

    Args:
        gpus: Consecutive ones form groups.
        group_size: GPUs of a group.
        links: Slowest link in each group; empty where none is known, or in groups of 1.
        idle: GPUs that no rank uses.
    """

    gpus: tuple[int, ...]
    group_size: int
    links: tuple[str, ...] = ()
    idle: tuple[int, ...] = ()

    def describe(self) -> str:
        """One line for the log, such as "0+1 (NV18), 2+3 (NV18); idle: 4"."""
        starts = range(0, len(self.gpus), self.group_size)
        groups = ["+".join(map(str, self.gpus[start : start + self.group_size])) for start in starts]
        told = [f"{group} ({link})" for group, link in zip(groups, self.links, strict=True)] if self.links else groups
        unknown = "; links unknown, in their own order" if self.group_size > 1 and not self.links else ""
        return ", ".join(told) + unknown + (f"; idle: {', '.join(map(str, self.idle))}" if self.idle else "")


def parse_links(text: str) -> Links:
    """The kinds of links between GPUs from the output of ``nvidia-smi topo -m``; empty if it holds no such table.

    Row i, column j: X on the diagonal, NV<lanes> for NVLink, else PIX, PXB, PHB, NODE or SYS.
    """
    lines = [line.split() for line in _ESCAPES.sub("", text).splitlines() if line.strip()]
    header = next((words for words in lines if words[0] == "GPU0" and "X" not in words), [])
    count = sum(re.fullmatch(r"GPU\d+", word) is not None for word in header)
    rows = {words[0]: tuple(words[1 : count + 1]) for words in lines if len(words) > count and words != header}
    names = [f"GPU{index}" for index in range(count)]
    return tuple(rows[name] for name in names) if count and all(name in rows for name in names) else ()


def place(links: Links, ranks: int, group_size: int) -> Placement:
    """Chooses ``ranks`` GPUs and their groups, so that the slowest link inside a group is as fast as can be, then their sum.

    Each subset of GPUs is looked at once, and none where the links are alike: 16 GPUs take a second or two at worst. Ties go to
    the lowest numbers.
    """
    speeds = [[speed(link) for link in row] for row in links]
    fastest = max((speeds[i][j] for i, j in combinations(range(len(links)), 2)), default=0)

    @cache
    def score(group: tuple[int, ...]) -> tuple[int, int]:
        inside = [speeds[i][j] for i, j in combinations(group, 2)]
        return min(inside, default=_FASTEST), sum(inside)

    @cache
    def best(left: tuple[int, ...], idle: int) -> tuple[tuple[int, int], tuple[tuple[int, ...], ...]]:
        if len(left) <= idle:
            return (_FASTEST, 0), ()
        first, others = left[0], left[1:]
        pairs = (len(left) - idle) * (group_size - 1) // 2
        found: tuple[tuple[int, int], tuple[tuple[int, ...], ...]] = (-_FASTEST, 0), ()
        for mates in combinations(others, group_size - 1):
            group = (first, *mates)
            slowest, total = score(group)
            if slowest < found[0][0]:
                continue
            (slowest_left, total_left), groups = best(tuple(gpu for gpu in others if gpu not in group), idle)
            reached = min(slowest, slowest_left), total + total_left
            found = max(found, (reached, (group, *groups)), key=itemgetter(0))
            if group_size == 1 or found[0] == (fastest, fastest * pairs):
                return found
        return max(found, best(others, idle - 1), key=itemgetter(0)) if idle else found

    groups = best(tuple(range(len(links))), len(links) - ranks)[1]
    gpus = tuple(gpu for group in groups for gpu in group)
    slowest = tuple(min(_pairs(links, group), key=speed) for group in groups) if group_size > 1 else ()
    return Placement(gpus, group_size, slowest, tuple(gpu for gpu in range(len(links)) if gpu not in gpus))


def speed(link: str) -> int:
    """A number by which links compare: NVLink by its lanes, before PCI Express; unknown kinds are last."""
    if re.fullmatch(r"NV\d+", link):
        return len(SLOWEST) + int(link[2:])
    return SLOWEST.index(link) if link in SLOWEST else -1


def ask_links() -> Links:
    """The links of this node's GPUs; empty where there is no ``nvidia-smi``, or it knows none.

    Raises:
        UsageError: it does not answer, or fails: other ranks may have heard it, and would choose other GPUs than this one.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    choice = "allowed: a node whose GPUs answer, or trainer.devices as a list of them, such as 0,1"
    try:
        answer = subprocess.run([program, "topo", "-m"], capture_output=True, text=True, timeout=ASK_S)
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"nvidia-smi topo -m did not answer within {ASK_S:.0f} s; {choice}") from error
    except OSError as error:
        raise UsageError(f"nvidia-smi topo -m: {error}; {choice}") from error
    if answer.returncode:
        said = " ".join(f"{answer.stdout} {answer.stderr}".split())
        raise UsageError(f"nvidia-smi topo -m: exit code {answer.returncode}: {said}; {choice}")
    return parse_links(answer.stdout)


def visible_links(links: Links, environment: Mapping[str, str]) -> Links:
    """The links between the GPUs that CUDA counts; empty where its numbering cannot be told from nvidia-smi's."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if not links or named is None:
        return links
    numbers = [int(word) for word in named.split(",") if word.isdigit()]
    if len(numbers) != len(named.split(",")) or max(numbers) >= len(links):
        return ()  # named by UUID, or the node shows only what the job was given, under other numbers
    return tuple(tuple(links[i][j] for j in numbers) for i in numbers)


def _pairs(links: Links, group: tuple[int, ...]) -> list[str]:
    return [links[i][j] for i, j in combinations(group, 2)]
