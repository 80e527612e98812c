"""A schedule for tests with a given kind for each step."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridiff.schedule import Branches, Decision, Sampler, Schedule, StepKind

KINDS = {"F": StepKind.FULL, "H": StepKind.HALF, "S": StepKind.SKIP, "P": StepKind.PIPELINED}


@dataclass
class Carried:
    """The policy: carries the last guidance difference D into half steps, and e_c into skip steps.

    A small letter of the script says the same as the capital and that no other half or pipelined step comes before the next full.
    """

    script: str
    shift_time: bool = False
    known: Branches | None = None

    def plan(self, step: int) -> Decision:
        letter = self.script[step]
        return Decision(KINDS[letter.upper()], "script", last=letter.islower(), shift_time=self.shift_time and letter == "P")

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> None:
        self.known = branches

    def half(self, step: int, conditional: Tensor) -> Branches:
        assert self.known is not None
        self.known = Branches(conditional, self.known.difference)
        return self.known

    def skip(self, step: int) -> Branches:
        assert self.known is not None
        return self.known


@dataclass(frozen=True)
class Scripted(Schedule):
    """Kinds of steps by letter; a script that ends early goes on with full steps."""

    script: str
    shift_time: bool = False

    name: ClassVar[str] = "scripted"

    @property
    def kinds(self) -> frozenset[StepKind]:
        return frozenset(KINDS[letter] for letter in "F" + self.script.upper())

    def begin(self, sampler: Sampler) -> Carried:
        return Carried(self.script.ljust(sampler.steps, "F"), self.shift_time)
