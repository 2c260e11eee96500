"""`supervisor.isolate`: any callable, by the code path that a cycle takes, from any program."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import supervisor
from supervisor import isolate, isolated
from tests.processes import jobs

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture(scope="module", autouse=True)
def helpers_end():
    """End the processes that multiprocess keeps for spawn and forkserver."""
    yield
    from multiprocess.forkserver import _forkserver
    from multiprocess.resource_tracker import _resource_tracker

    _forkserver._stop()
    _resource_tracker._stop()


@pytest.fixture
def nothing_left():
    """Leave the helper processes of a start method to the end of the module."""


def test_result_and_report(method):
    result, report = isolate(divmod, 17, 5, start_method=method)
    assert result == (3, 2)
    assert report["outcome"] == "ok"
    assert report["worker_pid"] != os.getpid()
    assert report["worker_peak_rss_bytes"] > 5_000_000


def test_closures_and_keywords(method):
    offset = 40

    def add(number, *, more=0):
        return {"sum": number + offset + more}

    assert isolate(add, 1, more=1, start_method=method).result == {"sum": 42}


def test_a_large_result_comes_whole(method):
    assert len(isolate(lambda: b"x" * 20_000_000, start_method=method).result) == 20_000_000


@pytest.mark.parametrize(
    ("function", "error", "says"),
    [
        (jobs.raises, supervisor.CallFailed, "boom"),
        (jobs.segfaults, supervisor.CallCrashed, "SIGSEGV"),
        (jobs.os_exits, supervisor.CallCrashed, "exit code 0"),
        (jobs.exits, supervisor.CallFailed, "SystemExit"),
    ],
)
def test_typed_errors_carry_the_report(method, function, error, says):
    with pytest.raises(error, match=says) as caught:
        isolate(function, start_method=method)
    assert caught.value.report["error"]["message"]
    assert caught.value.report["outcome"] in ("failed", "crashed")


def test_the_ceiling_is_a_memory_error_too(method):
    with pytest.raises(MemoryError) as caught:
        isolate(jobs.grows, rss_ceiling="150MB", start_method=method)
    assert isinstance(caught.value, supervisor.CeilingExceeded)
    assert "in grows" in str(caught.value)
    assert "inside.py" not in caught.value.report["error"]["traceback"]


def test_the_timeout_is_a_timeout_error_too(method):
    with pytest.raises(TimeoutError) as caught:
        isolate(time.sleep, 60, timeout=1, start_method=method)
    assert isinstance(caught.value, supervisor.CallTimeout)


def test_a_result_that_cant_be_pickled_is_a_failure():
    with pytest.raises(supervisor.CallFailed, match="pickle"):
        isolate(lambda: (number for number in range(3)), start_method="fork")


def test_the_decorator_returns_the_plain_result():
    @isolated(rss_ceiling="300MB", timeout=30)
    def twice(number: int) -> int:
        """Double."""
        return 2 * number

    assert twice(4) == 8
    assert (twice.__name__, twice.__doc__) == ("twice", "Double.")

    @isolated(timeout=30)
    def fails():
        raise ValueError("boom")

    with pytest.raises(supervisor.CallFailed, match="fails"):
        fails()


def test_from_many_threads_at_once():
    results = {}

    def call(number):
        results[number] = isolate(lambda: (number * number, os.getpid()))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: done.result[0] for number, done in results.items()} == {n: n * n for n in range(6)}
    assert len({done.result[1] for done in results.values()}) == 6


def run_program(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=jobs.__file__[: -len("/jobs.py")],
    )


def test_the_start_method_goes_by_the_threads():
    code = (
        "import threading\n"
        "from supervisor.isolation import _start_method\n"
        "print(_start_method(10**9), _start_method(1))\n"
        "stop = threading.Event(); thread = threading.Thread(target=stop.wait); thread.start()\n"
        "print(_start_method(10**9)); stop.set(); thread.join()\n"
    )
    assert run_program(code).stdout.split() == ["fork", "forkserver", "forkserver"]


def test_a_program_that_is_interrupted_takes_the_call_along():
    code = (
        "import signal, time\nfrom supervisor import isolate\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background ignores it
        "def slow():\n    print('started', flush=True); time.sleep(60)\n"
        "isolate(slow, grace=1)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout.readline() == "started\n"
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=20)
    assert program.returncode != 0


@pytest.mark.parametrize("size", ["much", "", "-1MB", "1TB"])
def test_a_size_that_is_none(size):
    with pytest.raises(ValueError, match="size"):
        isolate(dict, rss_ceiling=size)


@pytest.mark.parametrize(
    ("text", "size"), [("300MB", 300e6), ("1.5GiB", 1.5 * 2**30), ("300M", 300e6), (5, 5), ("7", 7)]
)
def test_sizes(text, size):
    from supervisor.isolation import _size_bytes

    assert _size_bytes(text) == size


def test_nothing_of_it_is_left():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        isolate(dict, start_method="fork")
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_api_is_what_it_says():
    for name in supervisor.__all__:
        assert getattr(supervisor, name) is not None
    with pytest.raises(AttributeError):
        supervisor.no_such_name  # noqa: B018
