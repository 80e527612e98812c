"""Large tables made ready once for all ranks and later runs."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from hybridiff.prompts.making import make_ready
from hybridiff.prompts.places import Store, TemporaryCopies
from hybridiff.prompts.record import identity
from hybridiff.prompts.rows import Request
from hybridiff.prompts.shared_copies import SharedCopies
from hybridiff.prompts.streamed import StreamedRows

Role = Literal["lead", "follow", "alone"]
"""Whether a rank makes tables ready for all (rank 0), waits until that is done, or keeps what it makes to itself."""


def stream(request: Request, store: Store | None, role: Role, before_copying: Callable[[], None]) -> StreamedRows:
    """Rows that are read when asked for; ``before_copying`` is called unless all was made ready before.

    Raises:
        UsageError: Anything about the tables is not allowed, or the store can't be written.
    """
    name = identity(request)
    if store is None or name is None:
        before_copying()
        return _alone(request)
    place = SharedCopies(store, name)
    if (made := place.load(request)) is None:
        before_copying()
        if role != "alone":
            made = place.make(request) if role == "lead" else place.wait(request)
    if made is None:
        return _alone(request)
    return StreamedRows(made.parts, made.columns, made.content, discard=partial(place.discard, request))


def _alone(request: Request) -> StreamedRows:
    place = TemporaryCopies()
    made = make_ready(request, place)
    return StreamedRows(made.parts, made.columns, made.content, keep=place)
