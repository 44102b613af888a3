"""`robovlms bench NAME`: the options of every benchmark; robovlms_ros/bench measures.

Each function below adds one benchmark's options; its docstring is the benchmark's description.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

DEFAULT = "policy"
COMMANDS = {
    "policy": ("robovlms_ros.bench.policy.command", "cost of a policy's step (the default)"),
    "plot": ("robovlms_ros.bench.policy.curves", "curves of cost from `bench policy --json`"),
    "stream": ("robovlms_ros.bench.streaming", "smoothness of streaming strategies under latency"),
    "node": ("robovlms_ros.bench.node", "time that the ROS node adds to a step"),
    "faults": ("robovlms_ros.bench.faults.measure", "faults through the graph at working speed"),
    "handover": ("robovlms_ros.bench.handover", "take-overs by a scripted person in episodes"),
    "so101": ("robovlms_ros.bench.so101.measure", "an SO-101 from a LeRobot folder to a moving arm"),
    "ik": ("robovlms_ros.bench.inverse_kinematics", "inverse kinematics of a whole chunk"),
    "collision": ("robovlms_ros.bench.collision", "collision check against the simulator's contacts"),
    "eval": ("robovlms_ros.bench.evaluation", "bag evaluation in blocks against frame by frame"),
    "loader": ("robovlms_ros.bench.loader", "training's loader against plain decoding"),
}


def policy(parser: argparse.ArgumentParser) -> None:
    """Cost of a policy's step on this machine: every path, against the machine's limits and against
    a transformers baseline, with random weights. Runs from a checkout with torch, transformers,
    numpy, Pillow, PyYAML and safetensors alone.

    presets: table (default; tiny and mid sizes on a CPU, full sizes on a GPU), must-show (mid sizes
    on a CPU, thresholds), gpu (full sizes, thresholds), curves (over history, cameras, chunk and
    robots), parts (each of the fast path's alone), head (the LSTM head's window alone, thresholds).
    Naming a backbone measures that instead. Exit code 1 when a threshold is missed or something
    could not be measured.
    """

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    add = parser.add_argument
    presets = ("table", "must-show", "gpu", "curves", "parts", "head")
    add("--preset", choices=presets, default="table")
    add("--backbone", action="append", metavar="NAME", help="this one; may be given several times")
    add("--size", choices=("tiny", "mid", "full"), help="default mid on a CPU, full on a GPU")
    add("--head", default="lstm", help="lstm, gpt or fc (default lstm)")
    add("--cameras", type=numbers, default=[1], help="1 to 3, or several: 1,2,3 (default 1)")
    add("--history", type=numbers, default=[16], help="frames, or several: 1,16,64 (default 16)")
    add("--chunk", type=numbers, default=[10], help="steps of an answer, or several (default 10)")
    add("--robots", type=numbers, default=[1],
        help="sessions stepped together (paths fast and plain)")
    add("--dtype", help="float32, bfloat16, float16 (default float32 on a CPU, bfloat16 on a GPU)")
    add("--paths", default="fast,plain,careful,logits",
        help="also fast:PART+PART, fast:fp8, logits_float32, logits_bfloat16; ratios are to the "
        "first")
    add("--rounds", type=int, help="interleaved rounds (default 7, in table and curves on a CPU 3)")
    add("--seconds", type=float, help="of each path, in all rounds (default: one step a round)")
    add("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    add("--threads", type=int, default=2, help="torch threads (default 2)")
    add("--json", type=Path, metavar="FILE", help="written after every model")
    add("--resume", action="store_true", help="keep the rows that FILE has from this machine")


def plot(parser: argparse.ArgumentParser) -> None:
    """Curves of cost over history, cameras, chunk and robots, from `bench policy --preset curves`.

    Exit code 1 when the file holds no two rows that differ in one of these alone.
    """
    parser.add_argument("file", type=Path, metavar="FILE", help="written by `bench policy --json`")
    parser.add_argument("--out", type=Path, default=Path("docs/images"),
                        help="folder (default docs/images)")
    parser.add_argument("--prefix", default="cost_over",
                        help="of the files' names (default cost_over)")


def stream(parser: argparse.ArgumentParser) -> None:
    """Smoothness of an arm's motion under inference latency, by strategy, on a model of the stock
    controller.

    A second table compares builds of the controller: a column a build, the naive senders beside the
    default strategy. Exit code 1 when the default strategy misses a threshold (150 ms, chunk of 30
    at 30 Hz, default controller; with jitter on Jazzy's controller, the newest, and one that is
    switched between the two).
    """
    parser.add_argument("--seeds", type=int, default=50, help="seeds per cell (default 50)")
    parser.add_argument("--reference-only", action="store_true",
                        help="only the first condition")
    parser.add_argument("--controllers-only", action="store_true",
                        help="only the table of controllers")
    _json(parser)


def node(parser: argparse.ArgumentParser) -> None:
    """Time that the ROS node adds to a step, for two 640x480 cameras at 30 Hz over the middleware.

    In: from an image's callback to the model's input ready. Out: from a chunk that is ready to its
    publication; the arm's command, which waits for inverse kinematics, scheduling and the gate, is
    a column of its own. Decoding, resizing and normalising are not counted as added: they are
    compared with the same calls alone in the same run. The cameras are a process of their own.
    Aims: at most 3 ms added (p99, in + out), ratio at most 1.2; exit code 1 when one is missed.
    """
    parser.add_argument("--seconds", type=float, default=20.0, help="per transport (default 20)")
    parser.add_argument("--encoding", default="bgr8",
                        help="of the raw images (default bgr8, which needs conversion)")
    _json(parser)


def faults(parser: argparse.ArgumentParser) -> None:
    """Faults injected through the real graph at working speed: command steps, speeds, accelerations
    and time to rest.

    Exit code 1 when a fault is beyond its bounds.
    """
    parser.add_argument("--only", nargs="+", metavar="TEXT",
                        help="faults whose name contains one of the texts")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the page there")
    _json(parser)


def handover(parser: argparse.ArgumentParser) -> None:
    """Take-overs at random moments of tabletop episodes, in simulated time: the worst command step
    at a hand-over, lost frames, and success afterwards, against the policy alone.

    A scripted person drives on ~/human/twist and ~/human/gripper, then hands back. Exit code 1 when
    the worst step is beyond 1.1 times that of the policy alone, or a frame is lost.
    """
    add = parser.add_argument
    add("--take-overs", type=int, default=40, help="one per scene, the tasks in turn (default 40)")
    add("--checkpoint", default="tasks", help="the policy (default tasks; empty: the expert)")
    add("--seed", type=int, default=0, help="of the first scene of each task (default 0)")
    add("--markdown", type=Path, metavar="FILE", help="also write the page there")
    _json(parser)


def so101(parser: argparse.ArgumentParser) -> None:
    """An SO-101 from a LeRobot folder to a moving arm: units, signs, rate and gripper end to end.

    Writes a LeRobot folder with one scripted episode of a made-up arm, trains config/train/so101 on
    it until it is known by heart, and lets the node drive a simulated SO-101. Exit code 1 when the
    motion leaves the episode's path by more than its bounds.
    """
    add = parser.add_argument
    add("--units", choices=("percent", "degrees"), default="percent",
        help="of the recording (default percent)")
    add("--steps", type=int, default=1500, help="of the training (default 1500)")
    add("--output", type=Path, metavar="FOLDER",
        help="keep everything there; a second run goes on (default: a temporary folder)")
    _json(parser)


def ik(parser: argparse.ArgumentParser) -> None:
    """Inverse kinematics of a whole chunk: time, reach and error, on paths that the arm can follow.

    Each path is a straight line with a steady turn, from a random configuration around the robot's
    home; long ones may leave the arm's reach, which takes longest. Times are of this thread's
    processor: of the wall clock on an idle machine.
    """
    parser.add_argument("--robot", default="panda", help="robot name or YAML (default panda)")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 16, 30],
                        help="chunk lengths (default 10 16 30)")
    parser.add_argument("--chunks", type=int, default=200, help="chunks per length (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    _json(parser)


def collision(parser: argparse.ArgumentParser) -> None:
    """The gate's collision check: driven chunks judged by the simulator, false alarms, and time.

    Chunks are driven through the table, a post and the arm itself, with the check and without it;
    the simulator's contact list is the judge. The tabletop's expert shows how often the check stops
    a motion that is free. Times are of this thread's processor. Exit code 1: a contact, or more
    than 1 % of the expert's chunks stopped.
    """
    add = parser.add_argument
    add("--chunks", type=int, default=300, help="driven chunks (default 300)")
    add("--expert", type=int, default=20, help="the expert's scenes per task (default 20)")
    add("--timed", type=int, default=300, help="chunks that are timed (default 300)")
    add("--seed", type=int, default=0)
    _json(parser)


def evaluation(parser: argparse.ArgumentParser) -> None:
    """Speed of a bag's evaluation: frames in blocks against frame by frame, reading and decoding
    included.

    Both give the same chunks (the largest difference is printed). Without --bag, simulated episodes
    are recorded first. Exit code 1 when blocks are not at least --at-least times as fast.
    """
    add = parser.add_argument
    add("--bag", type=Path, help="a rosbag2; without one, simulated episodes are recorded")
    add("--checkpoint", default="demo", help="the policy (default demo)")
    add("--robot", default="panda", help="robot name or YAML (default panda)")
    add("--block", type=int, default=32, help="frames through the network together (default 32)")
    add("--repeats", type=int, default=3, help="the best of so many passes counts (default 3)")
    add("--episode-time", type=float, default=8.0, help="s per recorded episode (default 8)")
    add("--threads", type=int, default=2, help="torch threads (default 2)")
    add("--device", default="cpu", help="cpu, cuda, ... (default cpu)")
    add("--at-least", type=float, default=2.0, help="times as fast (default 2)")
    _json(parser)


def loader(parser: argparse.ArgumentParser) -> None:
    """Rate of training's loader on your recordings, images a second, against plain decoding of
    every image once and in order by as many processes.

    Rows: decoding, the files of `data.keep_images: FOLDER` (in a temporary folder), windows at
    random of the recordings, the same of the files. Each rate is that of a second pass. Exit code 1
    when the loader on the files gives less than --at-least of plain decoding.
    """
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, metavar="PATH", help="recordings")
    add("--config", default="from_recordings",
        help="training YAML, or a name in config/train (default from_recordings)")
    add("--image-size", type=int, metavar="PIXELS", help="default: the file's vlm.image_size")
    add("--workers", type=int, default=2, help="processes that decode (default 2)")
    add("--windows", type=int, default=512, help="windows of a pass (default 512)")
    add("--at-least", type=float, default=0.7, help="of plain decoding (default 0.7)")
    _json(parser)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")


OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "policy": policy, "plot": plot, "stream": stream, "node": node, "faults": faults,
    "handover": handover, "so101": so101, "ik": ik, "collision": collision, "eval": evaluation,
    "loader": loader,
}
