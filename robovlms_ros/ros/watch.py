"""The watchdog, shared by the threads that feed it: `with watch as dog: dog.image(...)`."""

import threading

from robovlms_ros.control.watchdog import Watchdog


class Watch:
    """Gives one thread at a time the watchdog."""

    def __init__(self, dog: Watchdog) -> None:
        self._dog = dog
        self._lock = threading.Lock()

    def __enter__(self) -> Watchdog:
        self._lock.acquire()
        return self._dog

    def __exit__(self, *_: object) -> None:
        self._lock.release()
