"""Jobs that behave, and jobs that don't. Run in workers, by name."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil


def ok():
    return {"things": 3}


def nothing():
    return None


def with_cycle(cycle):
    return {
        "name": cycle.name,
        "number": cycle.number,
        "ceiling_bytes": cycle.ceiling_bytes,
        "state_dir": cycle.state_dir,
        "full": cycle.full,
        "remaining": cycle.remaining_s() > 0,
    }


def any_arguments(*arguments, **keywords):
    return {"arguments": len(arguments), "keywords": len(keywords)}


class Job:
    def run(self, cycle):
        return {"number": cycle.number}


bound = Job().run


def raises():
    secret = "the value of a record"  # noqa: F841 - must not be found in the report
    raise ValueError("boom")


def raises_chain():
    try:
        {}["a record's value"]
    except KeyError as error:
        raise RuntimeError("wrapped") from error


def raises_token():
    raise RuntimeError(f"token {os.environ['REDCAP_API_TOKEN']} at https://user:hunter2@host/ refused")


def exits():
    sys.exit(3)


def os_exits():
    os._exit(0)


def segfaults():
    ctypes.string_at(0)


def kills_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def large_summary():
    return {"text": "x" * 70_000}


def almost_large_summary():
    return {"text": "x" * 65_400}


def no_json():
    return {"value": object()}


def nan():
    return {"value": float("nan")}


def no_summary():
    return ["a", "list"]


def garbage(cycle):
    cycle._channel.send(b"\x80\x04not json")
    time.sleep(60)


def closes_channel(cycle):
    cycle._channel.close()
    time.sleep(60)


def tells_the_token(cycle):
    token = os.environ["MY_TOKEN"]
    print("the token is", token)
    print("x" * 1_990 + token + "y" * 70_000)
    cycle.progress(1, 2, "a" * 10 + token)
    return {"token": token, token: [token]}


def has_a_long_name():
    class Long(Exception):
        pass

    Long.__qualname__ = "A" * 70_000
    raise Long


def prints():
    print("hello from the job")
    print("to standard error", file=sys.stderr)
    os.write(1, b"no new line at the end")


def prints_a_lot():
    for number in range(20_000):
        print(f"line {number} " + "x" * 100)


def grows():
    held = []
    while True:
        held.append(b"x" * 1_000_000)


def grows_in_child():
    code = "held = []\nwhile True: held.append(b'x' * 1000000)"
    subprocess.run([sys.executable, "-c", code], check=True)


def one_huge_allocation():
    return {"length": len(bytearray(20_000_000_000))}


def hangs(cycle):
    Path(cycle.state_dir, "working").touch()
    time.sleep(60)


def ignores_sigterm(cycle):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hangs(cycle)


def stops_when_asked(cycle):
    Path(cycle.state_dir, "working").touch()
    done = 0
    while not cycle.stopping:
        done += 1
        cycle.progress(done, None, "things")
        time.sleep(0.01)
    return {"done": done}


def finishes_in_time(cycle):
    """Does its work to the end when it is asked to stop, and does not look."""
    Path(cycle.state_dir, "working").touch()
    while not Path(cycle.state_dir, "go").exists():
        time.sleep(0.01)
    return {"done": 1}


def leaves_daemon(cycle):
    """Fork twice and leave the session, as daemons do."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            Path(cycle.state_dir, "daemon").write_text(str(os.getpid()))
            time.sleep(60)
        os._exit(0)
    os.wait()
    while not Path(cycle.state_dir, "daemon").exists():
        time.sleep(0.01)
    return {}


def leaves_daemon_and_dies(cycle):
    leaves_daemon(cycle)
    os.kill(os.getpid(), signal.SIGKILL)


def leaves_thread():
    threading.Thread(target=time.sleep, args=(60,)).start()


def tells_itself():
    """What a worker can see of its own making."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "threads": int(status["Threads"]),
        "blocked": status["SigBlk"].strip(),
        "term_is_default": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
        "umask": os.umask(0o077),
        "score": int(Path("/proc/self/oom_score_adj").read_text()),
        "notify": os.environ.get("NOTIFY_SOCKET"),
        "argv": Path("/proc/self/cmdline").read_bytes().decode().split("\0"),
    }


served = 0


def counts():
    """Tell how often this very process was used."""
    global served
    served += 1
    return {"served": served}


def counts_and_holds():
    counts()
    holds.append(b"x" * 15_000_000)
    return {"served": served}


holds = []


def crashes_the_second_time(cycle):
    if cycle.number == 2:
        raise RuntimeError("the second time")
    return counts()


def is_quick():
    return {}


def environment():
    return {name: value for name, value in os.environ.items() if name.startswith("MY_")}


def reads_input():
    return {"read": len(sys.stdin.read())}


def asks_wrongly():
    return {}


def asks_and_fails():
    return {}


asks_wrongly.settings_faults = lambda: [{"a": 1}]
asks_and_fails.settings_faults = lambda: 1 / 0


def holds_the_interpreter():
    # The sum of a range of whole numbers is one call of C code, for minutes.
    return {"sum": sum(range(10**11))}


def grows_in_a_thread():
    thread = threading.Thread(target=grows)
    thread.start()
    thread.join()


def grows_in_a_fork():
    if os.fork() == 0:
        grows()
    os.wait()


def grows_and_stops_itself():
    """Write past the ceiling at once, then stand still: nothing but the supervisor can act."""
    held = b"x" * 200_000_000
    os.kill(os.getpid(), signal.SIGSTOP)
    return {"held": len(held)}


def has_children_and_hangs(cycle):
    """Have a child, a child of that, and a daemon that left the session; then hang."""
    leaves_daemon(cycle)
    code = "import subprocess, time; subprocess.Popen(['sleep', '61']); time.sleep(61)"
    child = subprocess.Popen([sys.executable, "-c", code])
    while not psutil.Process(child.pid).children():
        time.sleep(0.01)
    pids = [child.pid, psutil.Process(child.pid).children()[0].pid, int(Path(cycle.state_dir, "daemon").read_text())]
    Path(cycle.state_dir, "pids").write_text(" ".join(map(str, pids)))
    hangs(cycle)


def grows_starved():
    """Grow with what processor time nobody else wants."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    grows()


def starts_threads_without_end():
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


def lifts_its_limits_and_has_children(cycle):
    """Take the limit of data away, as most processes have none: none of them may be taken for ours."""
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    leaves_daemon(cycle)
    os.kill(os.getpid(), signal.SIGKILL)


def counts_up(cycle):
    """Take two seconds, and say how far it is."""
    held = bytearray(8_000_000)
    for done in range(0, 1001, 50):
        cycle.progress(done, 1000, "records")
        time.sleep(0.1)
    return {"things": 1000, "held": len(held)}


def counts_a_lot():
    return {f"thing_{number}": number for number in range(1, 40)}


def counts_and_prints(cycle):
    for done in range(5):
        cycle.progress(done, 5, "rows")
        time.sleep(0.15)
        print("hello", done, flush=True)
        time.sleep(0.15)


def says_escapes():
    raise ValueError("\x1b[2J\x1b]0;owned\x07\n12:00:00  fake #1 ok\r12:00:00  fake #2 ok")


def says_escapes_well():
    return {"\x1b[2J": 7}


def counts_up_and_hangs(cycle):
    cycle.progress(1, 2, "things")
    time.sleep(60)
