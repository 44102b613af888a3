"""`robovlms record` in a pseudo terminal, with the real recorder over DDS.

- Single keys begin, end, judge and discard episodes in the order in which they were pressed; t
  begins one with a typed name; arrow keys are no keys. The markers are in the bag.
- Ctrl-C in the middle of an episode, and the end of the terminal, leave a whole bag; the terminal's
  mode is restored, also after an exception.
- The rates of every topic are shown: a block in a terminal of any size, a line now and then
  elsewhere.
- A camera that leaves images out, one that stops and one that never comes are warned of while the
  recording goes on.
"""

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from fcntl import ioctl

import pytest

pytestmark = pytest.mark.ros

COMMAND = (sys.executable, "-X", "faulthandler", "-m", "robovlms_ros.cli", "record")
CONTROL_C = b"\x03"


class Terminal:
    """A pseudo terminal with a command in its foreground. text: everything that it wrote."""

    def __init__(self, *command):
        self._master, self._slave = pty.openpty()
        self.resize(40, 120)
        self.mode = termios.tcgetattr(self._slave)
        self.text = ""
        self.process = subprocess.Popen(
            command, stdin=self._slave, stdout=self._slave, stderr=self._slave,
            start_new_session=True, preexec_fn=self._own_terminal)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @staticmethod
    def _own_terminal():
        ioctl(0, termios.TIOCSCTTY, 0)
        # Tests that nohup started inherit it ignored, and a recording leaves it so.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def _read(self):
        while self.process.poll() is None or select.select([self._master], [], [], 0.5)[0]:
            if select.select([self._master], [], [], 0.1)[0]:
                self.text += os.read(self._master, 1 << 16).decode()

    def resize(self, lines, columns):
        ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys):
        os.write(self._master, keys)

    def is_restored(self):
        return termios.tcgetattr(self._slave) == self.mode

    def takes_keys(self):
        return not termios.tcgetattr(self._slave)[3] & termios.ICANON

    def wait(self):
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # its threads' stacks
            self._reader.join(10)
            pytest.fail(f"it has not ended: {self.text[-4000:]}")
        self._reader.join(30)
        return code

    def close(self):
        self.process.kill()
        self.process.wait()
        self._reader.join(30)
        os.close(self._master)
        os.close(self._slave)


class Cameras:
    """Two cameras by stamps of its own: `step` sends an image 33 ms after the last."""

    def __init__(self, ros, namespace):
        from sensor_msgs.msg import Image

        self.node = ros.create_node("cameras", namespace=namespace)
        self.publishers = {name: self.node.create_publisher(Image, f"{name}/image_raw", 100)
                           for name in ("static", "wrist")}
        self._image = Image(height=2, width=2, encoding="rgb8", step=6, data=bytes(12))
        self._stamp_ms = 1_000_000

    def step(self, *names):
        self._stamp_ms += 33
        self._image.header.stamp.sec = self._stamp_ms // 1000
        self._image.header.stamp.nanosec = self._stamp_ms % 1000 * 1_000_000
        for name in names:
            self.publishers[name].publish(self._image)


@pytest.fixture
def cameras(ros, request):
    made = Cameras(ros, re.sub(r"\W", "_", request.node.name.removeprefix("test_")))
    yield made
    made.node.destroy_node()


@pytest.fixture
def record(cameras, tmp_path):
    """A function that starts `robovlms record` in a terminal; the bag is tmp_path / "bag"."""
    terminals = []

    def start(*arguments):
        space = cameras.node.get_namespace()
        terminals.append(Terminal(*COMMAND, str(tmp_path / "bag"), "--namespace", space, *arguments))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def until(wait_for, terminal, text):
    wait_for(lambda: text in terminal.text or terminal.process.poll() is not None,
             lambda: f"{text!r} in {terminal.text[-2000:]!r}")
    assert text in terminal.text


def ready(wait_for, cameras, terminal):
    """Until both cameras are recorded."""
    def recorded():
        cameras.step("static", "wrist")
        names = re.findall(r"[1-9]\d* .{14} /\S+/(static|wrist)/image_raw", terminal.text)
        return {"static", "wrist"} <= set(names)

    wait_for(recorded, lambda: f"the rates, it shows {terminal.text[-2000:]}")


def markers(path):
    from robovlms_ros.evaluation.bags.reader import Bag

    with Bag(path) as bag:
        notes = bag.notes
        topics = {topic for topic in bag.topics if topic.endswith("/episode")}
        return [bag.decode(raw).data for raw in bag.messages(topics)], notes


def test_keys_mark_episodes(record, cameras, tmp_path):
    from ros_graph import wait_for

    terminal = record()
    ready(wait_for, cameras, terminal)
    assert terminal.takes_keys()
    terminal.press(b"bsbf\nd")  # as fast as a terminal takes them
    terminal.press(b"\x1b[D\x1b[B\x1bd?x")  # arrows, Alt-d, unknown keys
    terminal.press(b"tred cupe\x7f\x7fbe\n")
    until(wait_for, terminal, "begin: red cube")
    terminal.press(b"e")
    terminal.press(b"tnever")
    until(wait_for, terminal, "name: never_")
    terminal.text = ""
    terminal.press(b"\x1b")
    until(wait_for, terminal, "b begin  t begin by name")
    terminal.press(b"s")
    until(wait_for, terminal, "success: red cube")
    terminal.press(CONTROL_C)
    assert terminal.wait() == 0, terminal.text
    assert terminal.is_restored()
    texts, notes = markers(tmp_path / "bag")
    assert texts == ["episode 1", "success", "episode 2", "failure", "episode 3", "discard",
                     "red cube", "end", "success"]
    assert not notes


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_end_in_the_middle_of_an_episode(record, cameras, tmp_path, end):
    from ros_graph import wait_for

    terminal = record()
    ready(wait_for, cameras, terminal)
    terminal.press(b"b")
    until(wait_for, terminal, "begin: episode 1")
    terminal.process.send_signal(end)
    terminal.process.send_signal(end)  # an impatient second one
    assert terminal.wait() == 0, terminal.text
    assert terminal.is_restored()
    assert markers(tmp_path / "bag") == (["episode 1"], [])


def test_the_terminal_is_restored_after_an_error(record, cameras, tmp_path):
    (tmp_path / "bag").mkdir()
    terminal = record()
    assert terminal.wait() == 1 and "exists already" in terminal.text
    assert terminal.is_restored()


def test_the_mode_is_restored_after_an_exception():
    from robovlms_ros.cli.record import RecordingTerminal

    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    with os.fdopen(slave, "r") as keyboard, open(os.devnull, "w") as screen:
        with pytest.raises(ZeroDivisionError), RecordingTerminal(keyboard, screen):
            assert termios.tcgetattr(slave) != before
            1 / 0  # noqa: B018
        assert termios.tcgetattr(slave) == before
    os.close(master)


def test_a_resized_terminal_shows_what_fits(record, cameras, tmp_path):
    from ros_graph import wait_for

    terminal = record()
    ready(wait_for, cameras, terminal)
    terminal.resize(6, 30)
    terminal.text = ""
    until(wait_for, terminal, "\x1b[5A")  # six lines: a block of five
    lines = terminal.text.replace("\r\x1b[J", "").split("\x1b[5A", 1)[1].splitlines()
    rows = [line for line in lines if re.search(r" Hz |episode: ", line)]
    assert rows
    assert all(len(row.replace("\x1b[5A", "")) < 30 for row in rows)
    terminal.press(CONTROL_C)
    assert terminal.wait() == 0, terminal.text


def test_a_camera_that_leaves_images_out_and_one_that_stops(record, cameras):
    from ros_graph import wait_for

    terminal = record()
    ready(wait_for, cameras, terminal)
    for _ in range(40):
        cameras.step("static", "wrist")
    cameras.step("static")
    cameras.step("static", "wrist")
    until(wait_for, terminal, "wrist/image_raw: images lost so far: 1")
    assert "The middleware lost none of them" in terminal.text
    until(wait_for, terminal, "static/image_raw: no image for")
    until(wait_for, terminal, "stopped")
    terminal.press(CONTROL_C)
    assert terminal.wait() == 0, terminal.text
    assert "(1 lost)" in terminal.text or "(stopped)" in terminal.text


def test_a_camera_that_never_comes(record, cameras):
    from ros_graph import wait_for

    kind = cameras.publishers["wrist"].msg_type
    cameras.node.destroy_publisher(cameras.publishers.pop("wrist"))
    cameras.node.create_publisher(kind, "wrist/image_color", 10)
    terminal = record()
    until(wait_for, terminal, "wrist/image_raw. Did you mean")
    assert "wrist/image_color'?" in terminal.text
    assert re.search(r"no publisher +/\S+/wrist/image_raw", terminal.text)
    terminal.press(CONTROL_C)
    terminal.wait()


def test_no_mark_before_the_clock(record, cameras):
    from ros_graph import wait_for

    terminal = record("--use-sim-time")
    wait_for(terminal.takes_keys, "the keys")
    terminal.press(b"b")
    until(wait_for, terminal, "not marked: nobody publishes /clock yet")
    terminal.press(CONTROL_C)
    assert terminal.wait() == 1 and "somebody publishes /clock" in terminal.text


def test_lines_of_rates_without_a_terminal(cameras, tmp_path):
    from ros_graph import wait_for

    output = tmp_path / "output"
    with output.open("w") as sink:
        process = subprocess.Popen(
            [*COMMAND, str(tmp_path / "bag"), "--namespace", cameras.node.get_namespace()],
            stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
        try:
            def shown():
                cameras.step("static", "wrist")
                line = r"episode: none; \S+static/image_raw [\d.]+ Hz"
                return re.search(line, output.read_text())

            wait_for(shown, lambda: f"a line of rates in {output.read_text()!r}")
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, output.read_text()
        finally:
            process.kill()
            process.wait()
    assert "\x1b" not in output.read_text()
