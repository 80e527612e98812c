"""What the ranks of a group tell each other beside the pipeline, so that all of them do the same."""

import torch

from hybridiff.parallel import Exchange
from hybridiff.secrets import shortened

REASON_BYTES = 256


class Agreement:
    """Small exchanges; every rank of the group calls each of them.

    Args:
        exchange: Of the group.
        device: On which the group exchanges.
    """

    def __init__(self, exchange: Exchange, device: torch.device) -> None:
        self._exchange = exchange
        self._device = device

    def failed(self, mine: bool) -> bool:
        """Whether any rank says so; from host to host, apart from the device's exchanges."""
        return bool(self._exchange.largest(int(mine), self._exchange.group.timeout_s))

    def failure(self, error: BaseException | None) -> str | None:
        """Why one of the ranks failed, in one line: the first of them; None if none did."""
        text = b"" if error is None else reason(error).encode()[:REASON_BYTES]
        mine = torch.tensor(list(text.ljust(REASON_BYTES, b"\0")), dtype=torch.uint8, device=self._device)
        gathered = self._exchange.all_gather(mine)
        reasons = [bytes(theirs.tolist()).rstrip(b"\0").decode(errors="ignore") for theirs in gathered]
        return next((text for text in reasons if text), None)


def reason(error: BaseException) -> str:
    """An error as a row of the corpus has it: one line, shortened, without secrets, and the same each time it happens."""
    lines = str(error).strip().splitlines()
    return shortened(": ".join([type(error).__name__, *lines[:1]]), REASON_BYTES)
