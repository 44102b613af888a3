"""Record a rosbag (MCAP) of everything that evaluation and training need. Needs ROS.

Cameras, joint states, commands, instruction, chunks, status and the node's configuration, with the
live rate of every topic. Keys in a terminal: b or Enter begins an episode, t begins one with a
typed name, e ends it, s and f end it as a success or a failure, d discards it; s, f and d also
judge the last one after its end. Ctrl-C ends the recording.
"""

import argparse
import codecs
import os
import re
import select
import signal
import sys
import termios
import tty
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

KEYS = {"b": "", "\n": "", "e": "end", "s": "success", "f": "failure", "d": "discard"}
HELP = "b begin  t begin by name  e end  s success  f failure  d discard  Ctrl-C ends the recording"
SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|O.|[^\[O\x1b])")
"""Arrow keys and the like, whose last letter is no key of ours."""
ABSENT = "no publisher"
PLAIN_EVERY = 10
"""Calls of `show` for each line of an output that is no terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms record`."""
    parser.add_argument("output", type=Path, help="folder to make")
    parser.add_argument("--config", type=Path, help="the node's parameters (vla.yaml)")
    parser.add_argument("--robot", help="robot name or YAML, instead of the parameters'")
    parser.add_argument("--namespace", default="", help="namespace of the node (default none)")
    parser.add_argument("--node", default="vla_node", help="name of the node (default vla_node)")
    parser.add_argument("--topic", action="append", default=[], help="also this topic, may be repeated")
    parser.add_argument("--duration", type=float, default=0.0, help="s; 0: until Ctrl-C")
    parser.add_argument("--use-sim-time", action="store_true", help="stamp by /clock (or the parameters' use_sim_time)")
    parser.add_argument("--print-command", action="store_true", help="only print the same `ros2 bag record`")


def run(args: argparse.Namespace) -> int:
    """Record; returns 0."""
    from robovlms_ros.cli.eval_setup import read_parameters, uses_sim_time
    from robovlms_ros.ros.recording import RecordingOptions, bag_record_command, record, topics_of

    parameters = read_parameters(args.config, {"robot": args.robot})
    topics = tuple(dict.fromkeys([*topics_of(parameters, args.namespace, args.node), *args.topic]))
    simulated = args.use_sim_time or uses_sim_time(args.config)
    options = RecordingOptions(args.output, topics, args.duration, 0.0, parameters, simulated, args.namespace)
    print(f"with rosbag2 installed the same is: {bag_record_command(options)}")
    if args.print_command:
        return 0
    print(f"recording to {args.output}; Ctrl-C ends it", flush=True)
    with RecordingTerminal(sys.stdin, sys.stdout) as terminal:
        record(options, terminal.log, terminal)
    return 0


class RecordingTerminal:
    """Keys of a terminal, read one by one, and a block of rates at its end; without a terminal a
    line of rates now and then. Use as a context manager: it restores the terminal's mode.
    """

    def __init__(self, keyboard: TextIO, screen: TextIO) -> None:
        self._keyboard = keyboard.fileno() if keyboard.isatty() else None
        self._screen = screen
        self._is_terminal = screen.isatty()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._mode: list[Any] | None = None  # the terminal's own
        self._name: str | None = None  # the name that is being typed
        self._block: list[str] = []
        self._rows: list[str] = []
        self._episode = "none"
        self._shown = 0

    def __enter__(self) -> "RecordingTerminal":
        if self._keyboard is not None:
            self._continued = signal.signal(signal.SIGCONT, lambda *_: self._take_keys())
            self._take_keys()
        return self

    def __exit__(self, *_: object) -> None:
        self._erase()
        if self._keyboard is not None:
            signal.signal(signal.SIGCONT, self._continued)
            if self._mode is not None and self._in_foreground():
                with suppress(termios.error):  # the terminal was closed
                    termios.tcsetattr(self._keyboard, termios.TCSANOW, self._mode)

    def _in_foreground(self) -> bool:
        """False for a background job, which the kernel stops for reading the terminal."""
        assert self._keyboard is not None
        try:
            return os.tcgetpgrp(self._keyboard) == os.getpgrp()
        except OSError:
            return True  # a terminal that controls no session has no background

    def _take_keys(self) -> None:
        """Read keys without Enter from now on; after a pause by Ctrl-Z again."""
        assert self._keyboard is not None
        if self._in_foreground():
            self._mode = self._mode or termios.tcgetattr(self._keyboard)
            tty.setcbreak(self._keyboard, termios.TCSANOW)

    def marks(self) -> list[str]:
        """See RecordingConsole."""
        keyboard = self._keyboard
        if keyboard is None or not select.select([keyboard], [], [], 0)[0]:
            return []
        if not self._in_foreground():
            return []
        try:
            data = os.read(keyboard, 4096)
        except OSError:  # the terminal was closed
            data = b""
        if not data:
            self._mode = None
            self._keyboard = None
            return []
        text = SEQUENCE.sub("", self._decoder.decode(data)).replace("\r", "\n")
        found = [self._press(key) for key in text]
        self._draw()
        return [mark for mark in found if mark is not None]

    def _press(self, key: str) -> str | None:
        """The marker of a key; None for one that only edits a name, and for unknown ones."""
        if self._name is None:
            if key == "t":
                self._name = ""
            return KEYS.get(key)
        name = self._name
        if key in ("\n", "\x1b"):
            self._name = None
            return name.strip() if key == "\n" else None
        if key in ("\x7f", "\b"):
            self._name = name[:-1]
        elif key.isprintable():
            self._name = name + key
        return None

    def log(self, text: str) -> None:
        """Print a line above the block."""
        self._erase()
        print(text, file=self._screen, flush=True)
        self._draw()

    def show(self, rows: list[tuple[str, float, int, str]], episode: str) -> None:
        """See RecordingConsole."""
        self._shown += 1
        self._episode = episode or "none"
        if self._keyboard is not None and self._mode is None:
            self._take_keys()  # a background job that came to the foreground
        if self._is_terminal:
            self._rows = [f"{rate:8.1f} Hz {count:8d}  {state:12}  {topic}"
                          for topic, rate, count, state in rows]
            self._draw()
        elif rows and self._shown % PLAIN_EVERY == 0:
            rates = ", ".join(f"{topic} {rate:.1f} Hz{f' ({state})' if state else ''}"
                              for topic, rate, _, state in rows if state != ABSENT)
            absent = ", ".join(topic for topic, _, _, state in rows if state == ABSENT)
            print(f"episode: {self._episode}; {rates}; no publisher: {absent or 'none'}",
                  file=self._screen, flush=True)

    def _size(self) -> tuple[int, int]:
        """Columns and lines now; COLUMNS of the environment does not follow the terminal."""
        size = os.get_terminal_size(self._screen.fileno())
        return size.columns or 80, size.lines or 24

    def _draw(self) -> None:
        self._erase()
        if not self._rows:
            return
        columns, lines = self._size()
        below = [f"episode: {self._episode}"]
        if self._keyboard is not None:
            below.append(HELP if self._name is None else f"name: {self._name}_")
        rows = [*self._rows[:max(lines - 1 - len(below), 0)], *below]
        self._block = [row[:columns - 1] for row in rows]
        self._screen.write("".join(f"{row}\n" for row in self._block))
        self._screen.flush()

    def _erase(self) -> None:
        """Remove the block; a terminal that became narrower has broken its rows."""
        if self._block:
            columns, _ = self._size()
            up = sum(max(-(-len(row) // columns), 1) for row in self._block)
            self._screen.write(f"\x1b[{up}A\r\x1b[J")
            self._block = []
