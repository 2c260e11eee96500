"""What systemd is told (sd_notify(3)): one datagram each, from the loop itself.

The watchdog is fed by the loop between two waits and by nothing else: a loop that hangs is not fed.
"""

import os
import socket
import time
from collections.abc import MutableMapping


class Notifier:
    """Speaks to the init system where there is one that listens; takes its address for itself."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        # Taken out of the environment: else any library of a job may speak for the service.
        address = environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = environ.pop("WATCHDOG_USEC", "")
        watchdog_pid = environ.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        ours = watchdog_pid in ("", str(os.getpid()))
        self.beat_s: float | None = None  # between two beats: half of what systemd waits for
        if self._address and ours and watchdog_us.isdigit() and int(watchdog_us) > 0:
            self.beat_s = int(watchdog_us) / 2e6
        self._beaten_s = float("-inf")
        self._status = ""

    def reloading(self) -> None:
        """Say that the settings are read again; READY=1 ends it."""
        self.send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def status(self, text: str) -> None:
        """Say what `systemctl status` shows, when it is something new."""
        if text != self._status:
            self._status = text
            self.send(f"STATUS={text}")

    def beat(self, now_s: float) -> None:
        """Feed the watchdog when it is time."""
        if self.beat_s is not None and now_s - self._beaten_s >= self.beat_s:
            self._beaten_s = now_s
            self.send("WATCHDOG=1")

    def send(self, text: str) -> None:
        """Say anything of sd_notify(3), as READY=1 or STOPPING=1."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(text.encode(), self._address)
        except OSError:
            pass  # the init system restarts: a service must not fail of that (sd_notify(3))
