"""`robovlms data`: select recordings by their marks. Nothing is copied, changed or written over.

A selection is a YAML file of recordings and of the episodes to leave out; `--data` of train and
export, and these commands, take it in the place of recordings.
"""

import argparse
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from robovlms_ros.core.schema import require

MARKED = ("success", "failure", "unknown")


def stats(parser: argparse.ArgumentParser) -> None:
    """Episodes by recording, mark and instruction; how long a person drove."""
    _reads(parser)


def filter_(parser: argparse.ArgumentParser) -> None:
    """Select the episodes with a mark, an instruction, or a person who took over."""
    _reads(parser)
    _writes(parser)
    add = parser.add_argument
    add("--outcome", nargs="+", default=[], choices=MARKED, help="one of these marks")
    add("--instruction", metavar="PATTERN", help="as in a shell, in any case: 'lift * cube'")
    add("--interventions", action="store_true", help="a person took over")


def split_(parser: argparse.ArgumentParser) -> None:
    """Hold a share of the episodes back, drawn by their names: the same ones on every machine."""
    _reads(parser)
    _writes(parser)
    add = parser.add_argument
    add("--held", type=Path, required=True, metavar="FILE", help="selection of the held episodes")
    add("--fraction", type=float, default=0.1, help="share that is held back (default 0.1)")
    add("--seed", type=int, default=0, help="of the draw (default 0)")


def merge(parser: argparse.ArgumentParser) -> None:
    """One selection of several: an episode is in it that is in one of them."""
    _data(parser)
    _writes(parser)


OPTIONS = {"stats": stats, "filter": filter_, "split": split_, "merge": merge}
COMMANDS = {
    name: ("data", (options.__doc__ or "").partition(".")[0]) for name, options in OPTIONS.items()
}
DEFAULT = "stats"


def _data(parser: argparse.ArgumentParser) -> None:
    kinds = "recordings and selections"
    parser.add_argument("data", type=Path, nargs="+", metavar="PATH", help=kinds)


def _reads(parser: argparse.ArgumentParser) -> None:
    _data(parser)
    parser.add_argument("--config", required=True, help="training YAML, or a name in config/train")


def _writes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE", help="selection to write (.yaml)")


def run(args: argparse.Namespace) -> int:
    """Run one of the commands; returns 0. Raises DataError and ConfigError."""
    from robovlms_ros.training.data import selection
    from robovlms_ros.training.data.episodes import split

    for name in ("output", "held"):
        if hasattr(args, name):
            selection.require_new(getattr(args, name))
    chosen = selection.read_selections(args.data)
    if not hasattr(args, "config"):
        selection.write_selection(args.output, chosen)
        print(f"{args.output}: {len(chosen)} recordings")
        return 0
    source = _open(args)
    if not hasattr(args, "output"):
        _print_stats(chosen, source)
        return 0
    parts = {}
    if hasattr(args, "held"):
        require(args.held != args.output, "--held", args.held, "another file than --output")
        parts[args.output], parts[args.held] = split(source, args.fraction, args.seed)
    else:
        parts[args.output] = tuple(i for i in range(len(source)) if _fits(args, source.arrays(i)))
    for file, kept in parts.items():
        found = selection.select(chosen, source, set(kept).__contains__)
        selection.write_selection(file, found)
        episodes = len({source.origin(i) for i in kept})
        print(f"{file}: {episodes} episodes of {len(found)} recordings")
    return 0


def _open(args: argparse.Namespace) -> Any:
    """The episodes with every mark: those that training leaves out as well, but discarded ones."""
    from dataclasses import replace

    from robovlms_ros.core.resources import find
    from robovlms_ros.training.data.sources.bag_episodes import OUTCOMES
    from robovlms_ros.training.runs import open_data, read_run

    job = read_run(find(args.config, "config/train"))
    bag = {**(job.data.get("bag") or {}), "outcomes": list(OUTCOMES)}
    return open_data(args.data, replace(job, data={**job.data, "bag": bag}), lambda line: None)[0]


def _fits(args: argparse.Namespace, arrays: Any) -> bool:
    fits = not args.outcome or arrays.outcome in args.outcome
    if args.instruction is not None:
        fits = fits and fnmatch(arrays.instruction.lower(), args.instruction.lower())
    person = arrays.takeover is not None and bool((arrays.takeover == 0).any())
    return fits and (person or not args.interventions)


def _print_stats(chosen: Any, source: Any) -> None:
    from robovlms_ros.core.text_table import aligned
    from robovlms_ros.training.data.selection import by_recording

    episodes: dict[str, list[Any]] = {}
    for i in range(len(source)):
        episodes.setdefault(source.origin(i), []).append(source.arrays(i))
    rows = []
    for path, names in by_recording(chosen, source).items():
        pieces = [piece for name in names for piece in episodes[name]]
        marks = Counter(episodes[name][0].outcome for name in names)
        driven = [piece.takeover == 0 for piece in pieces if piece.takeover is not None]
        person = sum(int(flags.sum()) for flags in driven)
        minutes = sum(map(len, pieces)) / source.rate_hz / 60
        rows.append([str(path), str(len(names)), f"{minutes:.2f}",
                     *(str(marks[mark]) for mark in MARKED), f"{person / source.rate_hz:.1f}"])
    header = ["recording", "episodes", "minutes", *MARKED, "by a person, s"]
    print(aligned(header, rows, numbers=True))
    words = Counter(pieces[0].instruction for pieces in episodes.values())
    counts = [[text, str(count)] for text, count in words.most_common()]
    print(aligned(["instruction", "episodes"], counts, numbers=True))
    for name, why in source.dropped.items():
        print(f"left out: {name}: {why}")
