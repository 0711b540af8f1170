"""Reading ahead, writing behind and the turnstile of the device: order, bounds, errors."""

import threading

import pytest

from styleclip.tasks.running import overlap
from styleclip.tasks.running.overlap import (
    Writes,
    compute_slots,
    computing,
    io_threads,
    read_ahead,
    shards_at_once,
)
from styleclip.tasks.settings import SettingsError


def test_results_come_in_order_and_only_so_many_are_read_ahead():
    started, allowed = [], threading.Event()

    def read(item):
        started.append(item)
        allowed.wait(10)
        return item * item

    found = read_ahead(range(100), read, ahead=3)
    timer = threading.Timer(0.05, allowed.set)
    timer.start()
    assert next(found) == 0
    assert len(started) <= 4
    assert list(found) == [n * n for n in range(1, 100)]
    assert sorted(started) == list(range(100))


def test_an_error_comes_at_its_item_and_nothing_more_is_started():
    started = []

    def read(item):
        started.append(item)
        if item == 2:
            raise OSError("injected fault")
        return item

    found = read_ahead(range(1000), read, ahead=2)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(OSError, match="injected fault"):
        next(found)
    assert len(started) <= 6


def test_writes_are_bounded_and_keep_their_errors():
    lock, under_way, most = threading.Lock(), [0], [0]

    def write(number):
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        threading.Event().wait(0.002)
        with lock:
            under_way[0] -= 1
        if number == 5:
            raise OSError("disk full")
        return number

    writes = Writes[int](4)
    futures = [writes.submit(lambda n=n: write(n)) for n in range(40)]
    assert [f.result() for n, f in enumerate(futures) if n != 5] == [n for n in range(40) if n != 5]
    with pytest.raises(OSError, match="disk full"):
        futures[5].result()
    assert 1 < most[0] <= 4


def test_a_device_computes_for_as_many_as_it_has_slots(monkeypatch):
    monkeypatch.setenv("STYLECLIP_WORKERS", "2")
    monkeypatch.setattr(overlap, "_turnstiles", {})
    lock, inside, most = threading.Lock(), [0], [0]

    def work():
        with computing("cpu") as elapsed:
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            threading.Event().wait(0.02)
            with lock:
                inside[0] -= 1
            assert elapsed() > 0

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 2
    assert shards_at_once("cpu") == 6


def test_slots_and_threads_follow_the_environment(monkeypatch):
    monkeypatch.delenv("STYLECLIP_WORKERS", raising=False)
    assert compute_slots("cuda") == 1
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: {1, 4, 5})  # what a container may use
    assert compute_slots("cpu") == 3
    assert io_threads() == 16
    monkeypatch.setenv("STYLECLIP_IO_THREADS", "many")
    with pytest.raises(SettingsError, match="STYLECLIP_IO_THREADS must be a number from 1, got 'many'"):
        io_threads()
