"""Evaluate checkpoints on rosbags, without a robot and without ROS: is this policy safe to put on
my arm?

Reads rosbag2 folders or files (MCAP, SQLite; compressed, split, cut off), runs what the live node
runs, and writes to --output: report.html (open it), report.json, chunks.csv and annotated.mcap.
Exit code 0 when every threshold holds, 3 when one does not, 1 when the evaluation itself failed.

  robovlms eval demo_bag --checkpoint demo --threshold max_distance=0.02
  robovlms eval bags/* --config vla.yaml --checkpoint old=ckpt/a --checkpoint new=ckpt/b --jobs 4
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robovlms_ros.core.schema import ConfigError, build, read_mapping, require
from robovlms_ros.core.structured_text import write_json

MISSED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms eval`."""
    parser.add_argument("bags", nargs="*", type=Path, metavar="BAG", help="rosbag2 folder, .mcap or .db3 file")
    parser.add_argument("--config", type=Path, help="the node's parameters (vla.yaml): robot, cameras, tolerances, ...")
    parser.add_argument("--evaluation", type=Path, help="evaluation YAML: topics, what-ifs, thresholds, calibration")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="[NAME=]FOLDER",
                        help="policy to evaluate, may be repeated; `recorded` is the bag's own chunks")
    parser.add_argument("--backbone", help="with the checkpoint `random`: the preset to build")
    parser.add_argument("--robot", help="robot name or YAML, instead of the parameters'")
    parser.add_argument("--device", help="auto, cpu, cuda, ...")
    parser.add_argument("--output", type=Path, default=Path("outputs/eval"), help="folder (default outputs/eval)")
    parser.add_argument("--camera", action="append", default=[], metavar="NAME=TOPIC", help="topic of a camera")
    parser.add_argument("--commands", metavar="TOPIC", help="commands to compare with; `motion`: what followed")
    parser.add_argument("--instruction", help="for bags without one, or instead of theirs")
    parser.add_argument("--other-instruction", help="to see whether the model listens")
    parser.add_argument("--latency", type=float, nargs="+", metavar="S", help="replayed latencies; the first judges")
    parser.add_argument("--rate", type=float, help="inferences a second at most (default: every image)")
    parser.add_argument("--drop", type=float, help="fraction of images taken away")
    parser.add_argument("--stamps", default="all", help="`all` images, `recorded`: where the live run did, or FILE")
    parser.add_argument("--image-stamps", choices=("header", "bag"),
                        help="`bag`: time images by their reception, for recordings whose images are stamped zero")
    parser.add_argument("--annotate", action=argparse.BooleanOptionalAction,
                        help="write annotated.mcap, which is larger than the bag (default: yes)")
    parser.add_argument("--quick", action="store_true", help="no sensitivity runs, no annotated bag")
    parser.add_argument("--threshold", action="append", default=[], metavar="NAME=VALUE", help="e.g. max_distance=0.02")
    parser.add_argument("--jobs", type=int, default=1, help="bags at a time (default 1)")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="where jobs run (default local)")
    parser.add_argument("--fresh", action="store_true", help="compute again what an earlier run has finished")
    live = parser.add_argument_group("evaluating a live run (needs ROS)")
    live.add_argument("--live", action="store_true", help="record what the running node does, then evaluate that")
    live.add_argument("--namespace", default="", help="namespace of the node (default none)")
    live.add_argument("--node", default="vla_node", help="name of the node (default vla_node)")
    live.add_argument("--use-sim-time", action="store_true", help="stamp by /clock (or the parameters' use_sim_time)")
    live.add_argument("--duration", type=float, default=0.0, help="s to record; 0: until Ctrl-C, or silence")
    live.add_argument("--silence", type=float, default=5.0, help="s without images that end the recording (default 5)")


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns 0, or MISSED when a threshold does not hold."""
    from robovlms_ros.cli.eval_setup import EvaluationJob, named_checkpoints, read_parameters, run_jobs

    config = evaluation_config(args)
    parameters = read_parameters(args.config, {
        "backbone": args.backbone, "robot": args.robot, "device": args.device})
    checkpoints = named_checkpoints(args.checkpoint, parameters.checkpoint or ("recorded" if args.live else ""))
    if args.live:
        args.bags = [*args.bags, _record(args, parameters)]
        if "recorded" not in dict(checkpoints).values():
            checkpoints = (("recorded", "recorded"), *checkpoints)
        args.stamps = "recorded"
    require(len(args.bags) > 0, "BAG", [], "at least one rosbag2 folder or file")
    require(args.jobs >= 1, "--jobs", args.jobs, "at least 1")
    args.output.mkdir(parents=True, exist_ok=True)
    if args.fresh:
        shutil.rmtree(args.output / "parts", ignore_errors=True)
    threads = 1 if args.jobs > 1 or args.engine == "ray" else 0
    jobs = [EvaluationJob(bag, checkpoints, parameters, config, args.output, args.stamps, threads) for bag in args.bags]
    parts = run_jobs(jobs, args.engine, args.jobs, ProgressLine(len(jobs)))
    return finish([json.loads(part.read_text(encoding="utf-8")) for part in parts], jobs, args.output)


def evaluation_config(args: argparse.Namespace) -> Any:
    """The evaluation YAML with the command line's values on top. Raises ConfigError."""
    from robovlms_ros.evaluation.replay.evaluate import EvaluationConfig
    from robovlms_ros.evaluation.report.build import with_overrides

    data = read_mapping(args.evaluation) if args.evaluation else {}
    topics = dict(data.get("topics") or {})
    cameras = dict(topics.get("cameras") or {})
    for text in args.camera:
        name, equals, topic = text.partition("=")
        if not equals:
            raise ConfigError(f"--camera {text}: must be NAME=TOPIC.")
        cameras[name] = topic
    topics["cameras"] = cameras
    if args.commands:
        topics["commands"] = args.commands
    given = {"instruction": args.instruction, "other_instruction": args.other_instruction, "latencies": args.latency,
             "rate": args.rate, "drop": args.drop, "stamps": args.image_stamps}
    data = {**data, **{name: value for name, value in given.items() if value is not None}, "topics": topics}
    if args.quick:
        data.update(sensitivity=False, annotate=False)
    if args.annotate is not None:
        data["annotate"] = args.annotate
    config = build(EvaluationConfig, data, str(args.evaluation or "evaluation"))
    import dataclasses

    return dataclasses.replace(config, thresholds=with_overrides(config.thresholds, args.threshold))


def finish(parts: list[dict[str, Any]], jobs: Sequence[Any], output: Path) -> int:
    """Write report.json, report.html, chunks.csv and the annotated bags; print the answer."""
    from robovlms_ros.evaluation.report.build import build_report, left_out_lines
    from robovlms_ros.evaluation.report.html import render

    report = build_report(parts, jobs[0].config.thresholds)
    write_json(output / "report.json", report)
    title = f"Bag evaluation: {', '.join(report['policies']) or 'nothing'} on {len(parts)} bag" + "s" * (len(parts) > 1)
    (output / "report.html").write_text(render(report, title), encoding="utf-8")
    written = ["report.html", "report.json", *_collect(jobs, output)]
    for bag in report["bags"]:
        print(f"\n{bag['bag']}: {bag['images']} observations, {len(bag['episodes'])} episodes")
        for line in [*bag["topics"], *bag["notes"], *left_out_lines(bag)]:
            print(f"  {line}")
    print("\n" + "\n".join(report["answer"]) + f"\n\nwritten to {output}: {', '.join(written)}")
    return 0 if report["pass"] else MISSED


def _collect(jobs: Sequence[Any], output: Path) -> list[str]:
    """chunks.csv of all bags together; annotated.mcap, or one per bag where there are several."""
    header_written = False
    written = ["chunks.csv"]
    with (output / "chunks.csv").open("w", encoding="utf-8") as target:
        for job in jobs:
            for table in sorted(job.part.with_suffix("").glob("*.csv")):
                lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
                target.writelines(lines[header_written:])
                header_written = header_written or bool(lines)
    for job in jobs:
        for bag in job.part.with_suffix("").glob("*.mcap"):
            name = "annotated.mcap" if len(jobs) == 1 else f"annotated-{job.bag.stem}.mcap"
            shutil.copyfile(bag, output / name)
            written.append(name)
    return written


def _record(args: argparse.Namespace, parameters: Any) -> Path:
    """A bag of what the running node sees and does."""
    from robovlms_ros.cli.eval_setup import uses_sim_time
    from robovlms_ros.ros.recording import RecordingOptions, record, topics_of

    path: Path = args.output / f"live-{time.strftime('%Y%m%d-%H%M%S')}"
    args.output.mkdir(parents=True, exist_ok=True)
    print(f"recording to {path}; Ctrl-C ends it", flush=True)
    topics = topics_of(parameters, args.namespace, args.node)
    simulated = args.use_sim_time or uses_sim_time(args.config)
    record(RecordingOptions(path, topics, args.duration, args.silence, parameters, simulated, args.namespace), print)
    return path


class ProgressLine:
    """A bar on the terminal with the time left; nothing when the output is not a terminal, apart
    from finished bags."""

    def __init__(self, jobs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs = jobs
        self._done = 0
        self._clock = clock
        self._begin = clock()
        self._terminal = sys.stderr.isatty()

    def within(self, fraction: float) -> None:
        """So much of the present bag is done."""
        if self._terminal:
            self._show((self._done + fraction) / self._jobs)

    def done(self, name: str) -> None:
        """A bag is finished."""
        self._done += 1
        if self._terminal:
            self._show(self._done / self._jobs)
            sys.stderr.write("\n" if self._done == self._jobs else "")
        else:
            sys.stderr.write(f"[{self._done}/{self._jobs}] {name}: {self.left(self._done / self._jobs)}\n")

    def left(self, fraction: float) -> str:
        """The time left, in words."""
        spent = self._clock() - self._begin
        if fraction >= 1:
            return f"done in {_duration(spent)}"
        return "starting" if fraction <= 0 else f"{_duration(spent * (1 - fraction) / fraction)} left"

    def _show(self, fraction: float) -> None:
        full = round(30 * fraction)
        sys.stderr.write(f"\r[{'#' * full}{'.' * (30 - full)}] {fraction:4.0%}  {self.left(fraction):<18}")
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
