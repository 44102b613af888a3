"""Child processes of the demo: started, watched, and always ended; a graph of their own.

Commands of a simulated arm must never reach a real one.
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import RoboVLMsError


class ChildDied(RoboVLMsError):
    """A process that the run needs has ended; the text has its name, its exit code and its last
    output."""


class Child:
    """One node in a process of its own, its output in a log file.

    The environment limits each process to one compute thread: the simulator, the policy and the
    middleware share the machine, and thread pools that fight for two cores cost more than they
    give.
    """

    def __init__(self, name: str, module: str, arguments: Sequence[str], log: Path,
                 environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = log
        self._file = log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdout=self._file, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **environment},
        )

    def check(self) -> None:
        """Raise ChildDied when the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise ChildDied(f"{self.name} ended with code {code}. The end of {self._log}:\n{self._tail()}")

    def stop(self, patience: float = 10.0) -> int:
        """Send SIGINT, as Ctrl-C does; kill it when it does not end. Returns the exit
        code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._file.close()
        return self._process.returncode

    def _tail(self, lines: int = 25) -> str:
        self._file.flush()
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


LARGEST_DOMAIN = 232
"""The largest ROS_DOMAIN_ID whose ports fit into 16 bits (RTPS 2.2, 9.6.1.1)."""


def isolated_environment(domain: str = "") -> dict[str, str]:
    """Environment variables that keep a graph on this machine and on a domain.

    domain: 0 to LARGEST_DOMAIN; empty for a random one from 1 to 100. Raises ConfigError for
        others.
    """
    if not domain:
        domain = str(random.SystemRandom().randint(1, 100))
    if not domain.isascii() or not domain.isdigit() or int(domain) > LARGEST_DOMAIN:
        raise ConfigError(
            f"domain_id = {domain[:100]!r}: must be a whole number from 0 to {LARGEST_DOMAIN}, or empty for a "
            "random one."
        )
    return {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_DOMAIN_ID": domain}
