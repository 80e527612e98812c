"""Claims that are renewed while their shards are made."""

import threading
from contextlib import suppress

from hybridiff.corpus.claims import RENEWALS, Claims


class Renewal:
    """Renews claims on a thread of its own, from entering to leaving; then lets go of what is left.

    Args:
        claims: Whose.
        lease_s: Their lease in seconds.
    """

    def __init__(self, claims: Claims, lease_s: float) -> None:
        self._claims, self._every_s = claims, lease_s / RENEWALS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renew claims", daemon=True)

    def __enter__(self) -> "Renewal":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._claims.release_all()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            with suppress(Exception):  # storage out of reach: tried again, and asked for in any case before a commit
                self._claims.renew()
