"""One of several owners gets a lease; one that ends loses it; one that lost it is refused before it publishes."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from hybridiff.errors import UsageError
from hybridiff.storage.folder import Folder
from hybridiff.storage.lease import AcquireStopped, LeaseLost, Leases, check_lease
from hybridiff.storage.lease_file import UNREADABLE_S, lease_file, live_leases
from hybridiff.storage.owner import Owner
from tests.storage.leases import HERE, LEASE_S, Clock, leases, names


def files(folder: Folder) -> list[str]:
    return folder.names("leases")


def put(folder: Folder, name: str, expires: float, generation: int = 0, **owner: Any) -> None:
    """A lease as another process would have written it."""
    by = {**asdict(HERE), "id": "other", "machine": "elsewhere", **owner}
    document = {"owner": by, "since": 1000.0, "expires": expires, "lease_s": LEASE_S}
    folder.publish(lease_file("leases", name, generation), json.dumps(document).encode())


def test_every_name_is_acquired_once_by_all_owners_together(url: str, clock: Clock) -> None:
    folder = Folder(url)
    one, two = leases(folder, "one", clock), leases(folder, "two", clock)
    wanted = names("a", "b", "c", "d")
    acquired = [one.acquire_next(wanted), two.acquire_next(wanted), two.acquire_next(wanted), one.acquire_next(wanted)]
    assert sorted(map(str, acquired)) == ["a", "b", "c", "d"]
    assert one.held | two.held == {"a", "b", "c", "d"} and not one.held & two.held
    assert files(folder) == ["a.0.json", "b.0.json", "c.0.json", "d.0.json"]


def test_names_are_acquired_in_the_order_of_preference(url: str, clock: Clock) -> None:
    one = leases(Folder(url), "one", clock)
    assert [one.acquire_next(names("c", "a", "b")) for _ in range(3)] == ["c", "a", "b"]


def test_a_held_lease_is_not_acquired_until_it_is_released(url: str, clock: Clock) -> None:
    folder = Folder(url)
    one, two = leases(folder, "one", clock), leases(folder, "two", clock)
    assert one.acquire("a") and one.acquire("a") and not two.acquire("a")
    one.release("a")
    assert two.acquire("a") and clock.passed_s == 0 and not two.took_over("a")
    one.release("a")
    assert files(folder) == ["a.0.json"], "nobody removes another's lease"


def test_the_lease_of_an_owner_that_died_is_acquired_once_it_has_expired(url: str, clock: Clock) -> None:
    folder = Folder(url)
    dead, new = leases(folder, "dead", clock), leases(folder, "new", clock)
    assert dead.acquire("a") and not new.acquire("a")
    assert new.acquire_next(names("a")) == "a" and new.took_over("a")
    assert LEASE_S <= clock.passed_s < 1.2 * LEASE_S
    new.release("a")
    assert files(folder) == []


def test_a_name_of_a_live_owner_is_left_to_it_after_one_renewal(url: str, clock: Clock) -> None:
    folder = Folder(url)
    slow = leases(folder, "slow", clock)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        slow.renew()

    early = leases(folder, "early", clock, sleep=sleep)
    assert slow.acquire("a") and early.acquire_next(names("a")) is None
    assert clock.passed_s < LEASE_S / 2


def test_a_renewed_lease_does_not_expire(url: str, clock: Clock) -> None:
    folder = Folder(url)
    one, two = leases(folder, "one", clock), leases(folder, "two", clock)
    assert one.acquire("a")
    for _ in range(10):
        clock.sleep(0.9 * LEASE_S)
        one.renew()
    assert not two.acquire("a") and one.held == {"a"}


def test_an_owner_whose_clock_is_a_day_ahead_holds_nothing_for_longer_once_it_is_dead(url: str, clock: Clock) -> None:
    folder = Folder(url)
    put(folder, "a", clock.now + 86400)
    assert leases(folder, "new", clock).acquire_next(names("a")) == "a"
    assert LEASE_S <= clock.passed_s < 1.2 * LEASE_S


def test_waiting_ends_when_the_lease_is_free_or_what_is_waited_for_is_there(url: str, clock: Clock) -> None:
    folder = Folder(url)
    one, two = leases(folder, "one", clock), leases(folder, "two", clock)
    assert two.wait("a", lambda: False, 1.0) and clock.passed_s == 0
    one.acquire("a")
    assert not two.wait("a", lambda: clock.passed_s > 5, 1.0)
    assert two.wait("a", lambda: False, 1.0) and clock.passed_s == pytest.approx(LEASE_S, abs=LEASE_S / 6)


def test_one_that_is_to_stop_acquires_nothing_but_says_so_only_if_something_is_left(url: str, clock: Clock) -> None:
    folder = Folder(url)
    one, two = leases(folder, "one", clock), leases(folder, "two", clock)
    with pytest.raises(AcquireStopped):
        one.acquire_next(names("a"), lambda: True)
    assert files(folder) == [] and clock.passed_s == 0
    assert two.acquire("a")
    with pytest.raises(AcquireStopped):  # while it watches the other's lease
        one.acquire_next(names("a"), lambda: clock.passed_s > 0)
    assert clock.passed_s < LEASE_S / 2
    assert one.acquire_next(names(), lambda: True) is None


def test_an_owner_that_lost_its_lease_is_refused_before_it_publishes(url: str, clock: Clock) -> None:
    folder = Folder(url)
    one, two = leases(folder, "one", clock), leases(folder, "two", clock)
    assert one.acquire("a")
    one.require("a")
    clock.sleep(1.1 * LEASE_S)
    assert two.acquire("a")
    with pytest.raises(LeaseLost, match="the lease on a is another owner's"):
        one.require("a")
    assert one.held == frozenset()
    one.release("a")
    two.require("a")
    two.release("a")
    with pytest.raises(LeaseLost):
        two.require("a")


def test_a_lease_that_was_taken_over_before_it_expired_is_lost_at_once(url: str, clock: Clock) -> None:
    folder = Folder(url)
    one = leases(folder, "one", clock)
    assert one.acquire("a")
    put(folder, "a", clock.now + LEASE_S, generation=1)  # of a clock that is ahead, or that had listed an older lease
    with pytest.raises(LeaseLost):
        one.require("a")


def test_a_lease_on_what_is_done_is_neither_acquired_nor_kept(url: str, clock: Clock) -> None:
    folder, done = Folder(url), set[str]()
    one = leases(folder, "one", clock, is_done=done.__contains__)
    assert one.acquire("a")
    done.add("a")
    with pytest.raises(LeaseLost):
        one.require("a")
    one.release("a")
    assert not one.acquire("a") and files(folder) == []


def test_of_several_that_created_a_lease_at_once_the_one_it_names_has_it(
    url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(url)
    one, two = leases(folder, "one", clock), leases(folder, "two", clock)
    assert one.acquire("a")
    monkeypatch.setattr(two.folder, "publish", lambda name, data, exclusive: Folder.publish(folder, name, data))  # as Swift may
    assert two._take("a", 0)
    with pytest.raises(LeaseLost):
        one.require("a")
    two.require("a")


def test_a_takeover_while_a_lease_is_renewed_is_seen(url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other = Folder(url), Folder(url)
    one, two = leases(folder, "one", clock), leases(other, "two", clock)
    assert one.acquire("a")
    clock.sleep(1.1 * LEASE_S)

    def take_over_first(name: str, data: bytes, exclusive: bool) -> None:
        assert two.acquire("a")
        Folder.publish(folder, name, data, exclusive)

    monkeypatch.setattr(folder, "publish", take_over_first)
    with pytest.raises(LeaseLost):
        one.require("a")
    assert one.held == frozenset() and two.held == {"a"}


ENDED = {
    "a process of this machine that has ended": {"machine": HERE.machine, "pid": 2**22 + 1, "started": 1},
    "a process id that was used again": {"machine": HERE.machine, "started": 1},
    "an earlier start of the same batch job": {"job": "7", "restart": 0},
    "a job that the batch system says has ended": {"job": "8", "cluster": "big"},
}


@pytest.mark.parametrize("owner", ENDED.values(), ids=list(ENDED))
def test_the_lease_of_an_owner_that_is_known_to_have_ended_is_acquired_at_once(
    url: str, clock: Clock, owner: dict[str, Any]
) -> None:
    folder = Folder(url)
    put(folder, "a", clock.now + LEASE_S, **owner)
    me = replace(HERE, id="me", job="7", restart=1)
    one = leases(folder, me, clock, job_ended=lambda other: other.job == "8")
    assert one.acquire_next(names("a")) == "a" and clock.passed_s == 0


@pytest.mark.parametrize("owner", [{"job": "7", "restart": 1}, {"job": "7", "restart": 2}, {"job": "9"}, {}])
def test_the_lease_of_an_owner_of_which_nothing_is_known_is_not(url: str, clock: Clock, owner: dict[str, Any]) -> None:
    folder = Folder(url)
    put(folder, "a", clock.now + LEASE_S, **owner)
    me = replace(HERE, id="me", job="7", restart=1)
    assert not leases(folder, me, clock, job_ended=lambda other: other.job == "8").acquire("a")


def test_a_killed_process_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    program = f"""
import os, signal
from hybridiff.storage.folder import Folder
from hybridiff.storage.lease import Leases
assert Leases(Folder({str(tmp_path)!r}), "leases", 600.0).acquire("a")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    folder = Folder(str(tmp_path))
    assert files(folder) == ["a.0.json"] and live_leases(folder, "leases") == {}
    assert Leases(folder, "leases", 600.0).acquire("a")


UNREADABLE = {
    "garbage": b"garbage",
    "empty": b"",
    "a list": b"[]",
    "half": b'{"owner": {"id"',
    "another version's": json.dumps({"owner": asdict(HERE) | {"colour": "red"}, "since": 1, "expires": 2, "lease_s": 3}).encode(),
    "times as text": json.dumps({"owner": asdict(HERE), "since": "today", "expires": 2, "lease_s": 3}).encode(),
    "no number": json.dumps({"owner": asdict(HERE), "since": 1, "expires": float("nan"), "lease_s": 3}).encode(),
    "for ever": json.dumps({"owner": asdict(HERE), "since": 1, "expires": float("inf"), "lease_s": 3}).encode(),
    "restarts as text": json.dumps({"owner": asdict(HERE) | {"restart": "no"}, "since": 1, "expires": 2, "lease_s": 3}).encode(),
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=list(UNREADABLE))
def test_a_lease_that_cannot_be_read_is_somebodys_until_it_is_old(url: str, clock: Clock, content: bytes) -> None:
    folder = Folder(url)
    folder.publish(lease_file("leases", "a", 7), content)
    one = leases(folder, "one", clock)
    assert not one.acquire("a")
    assert str(live_leases(folder, "leases")["a"]).startswith("a process whose lease can't be read, since ")
    clock.sleep(UNREADABLE_S + 5)
    assert one.acquire("a") and files(folder) == ["a.7.json", "a.8.json"]


def test_live_leases_name_their_owners(url: str, clock: Clock) -> None:
    folder = Folder(url)
    assert live_leases(folder, "leases", clock) == {}
    put(folder, "a", clock.now + LEASE_S, host="far", pid=77, job="7")
    put(folder, "b", clock.now - 1)
    found = live_leases(folder, "leases", clock)
    assert {name: str(lease) for name, lease in found.items()} == {
        "a": "process 77 of job 7 on far, since 1970-01-01 00:16:40 UTC"
    }


def failing_for(folder: Folder, name: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a call on one file fail."""
    real = getattr(folder, call)

    def fail(given: str, *rest: Any, **named: Any) -> Any:
        if given == name:
            raise TimeoutError("no answer")
        return real(given, *rest, **named)

    monkeypatch.setattr(folder, call, fail)


def test_a_lease_that_cannot_be_renewed_does_not_affect_others(url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(url)
    one = leases(folder, "one", clock)
    assert one.acquire("a") and one.acquire("b") and one.acquire("c")
    clock.sleep(LEASE_S / 2)
    failing_for(folder, "leases/a.0.json", "read", monkeypatch)
    with pytest.raises(TimeoutError, match="no answer"):
        one.renew()
    monkeypatch.undo()
    left = {name: lease.expires - clock.now for name, lease in live_leases(folder, "leases", clock).items()}
    assert left == pytest.approx({"a": LEASE_S / 2, "b": LEASE_S, "c": LEASE_S}) and one.held == {"a", "b", "c"}


def test_a_lease_that_cannot_be_released_does_not_affect_others(url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(url)
    one = leases(folder, "one", clock)
    with one.heartbeat():
        assert one.acquire("a") and one.acquire("b") and one.acquire("c")
        failing_for(folder, "leases/b.0.json", "remove", monkeypatch)
    assert files(folder) == ["b.0.json"]


def test_the_heartbeat_renews_and_releases(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    one, two = (Leases(folder, "leases", 5.0) for _ in range(2))
    with one.heartbeat():
        assert one.acquire("a")
        first = live_leases(folder, "leases")["a"].expires
        while live_leases(folder, "leases")["a"].expires == first:
            time.sleep(0.05)
        assert two.acquire_next(names("a")) is None
    assert two.acquire("a")


def test_threads_never_get_the_same_lease(tmp_path: Path) -> None:
    folder, acquired = Folder(str(tmp_path)), Counter[str | None]()
    together = threading.Barrier(6)
    wanted = names(*(f"{n:02d}" for n in range(40)))

    def work() -> None:
        mine = Leases(folder, "leases", LEASE_S, sleep=lambda _: None)
        together.wait()
        acquired.update([mine.acquire_next(wanted) for _ in range(5)])

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(acquired) == 30 and set(acquired.values()) == {1} and None not in acquired


def watching(folder: Folder, call: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that a call of a folder is made with."""
    seen: list[str] = []
    real = getattr(folder, call)

    def watched(name: str, *rest: Any, **named: Any) -> Any:
        seen.append(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(folder, call, watched)
    return seen


def test_acquiring_asks_for_little_however_many_leases_of_others_there_are(
    url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(url)
    for n in range(50):
        put(folder, f"{n:02d}", clock.now + LEASE_S)
    one = leases(folder, "one", clock)
    listed, read, looked = watching(folder, "names", monkeypatch), watching(folder, "read", monkeypatch), list[bool]()

    def left(look: bool) -> list[str]:
        looked.append(look)
        return [f"{n:02d}" for n in range(60)]

    acquired = [one.acquire_next(left) for _ in range(5)]
    assert acquired == ["50", "51", "52", "53", "54"] and listed == ["leases"] and looked == [True] + 4 * [False]
    assert read == [f"leases/{name}.0.json" for name in acquired], "its own, to see that they are"
    clock.sleep(LEASE_S / 2)
    assert one.acquire_next(left) == "55" and listed == 2 * ["leases"], "a listing grows old"


def test_after_a_lost_race_an_owner_goes_on_elsewhere(url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(url)
    wanted = names(*(f"{n:03d}" for n in range(100)))
    owners = [leases(folder, f"owner {n}", clock) for n in range(20)]
    for owner in owners:
        owner._list()  # all look in the same moment
    created = watching(folder, "publish", monkeypatch)
    assert len({owner.acquire_next(wanted) for owner in owners}) == 20
    assert len(created) < 80, "not each after all before it, which were 210"


def test_leases_are_refused_where_they_would_end_while_a_request_is_retried(tmp_path: Path) -> None:
    folder = type("Elsewhere", (Folder,), {"retry_budget_s": 90.0})(str(tmp_path))
    with pytest.raises(UsageError, match=r"data.lease_s is 60 and .*; allowed: 120 to 1200 seconds there, .* retried for 90 s"):
        check_lease(folder, LEASE_S)


def test_owners_on_one_machine_differ() -> None:
    one, two = Owner.here("7"), Owner.here("7")
    assert one.id != two.id and replace(one, id="") == replace(two, id="") and not one.is_gone(two)


def test_the_name_of_a_lease_may_hold_dots(url: str, clock: Clock) -> None:
    folder = Folder(url)
    one = leases(folder, "one", clock)
    wanted = ["table-0.1", "table-0", "a.b.c"]
    assert all(one.acquire(name) for name in wanted) and set(live_leases(folder, "leases", clock)) == set(wanted)
