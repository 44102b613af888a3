"""`robovlms COMMAND`: finds the subcommand's module, runs it, turns the package's errors into one clear line.

A subcommand is a module with `add_arguments(parser) -> None` and `run(args) -> int` (the exit code).
"""

import argparse
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from robovlms_ros.core.schema import did_you_mean
from robovlms_ros.core.types import RoboVLMsError

COMMANDS = {
    "demo": ("demo", "drive the simulated arm through the real ROS graph and report"),
    "check": ("check", "preflight of a checkpoint: does it fit this robot and this machine?"),
    "convert": ("convert", "write a published RoboVLMs checkpoint in this package's format"),
    "train": ("train", "train a policy"),
    "demo-data": ("demo_data", "record demonstrations in the simulated arm"),
    "rollout": ("rollout", "closed-loop success in the simulated arm, without ROS"),
    "ablate": ("ablate", "ablations of the tabletop policy: what changes when one thing does"),
    "eval": ("eval", "evaluate checkpoints on rosbags: errors, gate, what-ifs, one report"),
    "play": ("play", "play a rosbag into the ROS graph, with /clock"),
    "record": ("record", "record everything that evaluation and training need"),
    "bench": ("bench", "benchmarks; `robovlms bench --help` lists them"),
}


EXTRAS = {
    "mcap": ("eval", "train"),
    "rosbags": ("eval", "train"),
    "lz4": ("eval", "train"),
    "zstandard": ("eval", "train"),
    "jinja2": ("eval", "train"),
    "matplotlib": ("eval", "train"),
    "cv2": ("eval",),
    "ray": ("fleet",),
    "accelerate": ("train",),
    "peft": ("train",),
    "av": ("train",),
    "pyarrow": ("train",),
    "tensorboard": ("train",),
    "tqdm": ("train",),
    "pinocchio": ("arm",),
    "mujoco": ("sim",),
    "robosuite": ("sim",),
    "numba": ("sim",),
}
"""Optional module -> the extras of this package that install it."""


class MissingModuleError(RoboVLMsError):
    """An optional module is not installed."""


@contextmanager
def optional_modules(command: str) -> Iterator[None]:
    """Raise MissingModuleError, with the extra to install, in place of the ModuleNotFoundError of an optional module.

    command: its extra is named where several bring the module.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        extras = EXTRAS.get(name)
        if extras is None:
            raise
        extra = command if command in extras else extras[0]
        raise MissingModuleError(
            f"the Python module '{name}' is not installed. `pip install 'robovlms_ros[{extra}]'` brings it, or "
            f"`pip install -e '.[{extra}]'` in a checkout of the source."
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code (2 for a wrong command line, 1 for a refusal)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("OpenGL").setLevel(
        logging.WARNING
    )  # it names an extra that it lacks whenever it is imported
    return dispatch("robovlms", COMMANDS, arguments)


def dispatch(program: str, commands: dict[str, tuple[str, str]], arguments: list[str]) -> int:
    """Run `arguments[0]` out of `commands` (name -> module in this package, summary) with the rest."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(program, commands))
        return 0
    name = arguments[0]
    if name not in commands:
        print(
            f"{program}: unknown command '{name}'.{did_you_mean(name, commands)}", file=sys.stderr
        )
        return 2
    module_name, summary = commands[name]
    try:
        with optional_modules(name):
            module = importlib.import_module(f"robovlms_ros.cli.{module_name}")
    except MissingModuleError as error:
        print(f"{program} {name}: {error}", file=sys.stderr)
        return 1
    if hasattr(module, "COMMANDS"):
        rest = arguments[1:]
        unnamed = not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help"))
        if unnamed and hasattr(module, "DEFAULT"):
            rest = [module.DEFAULT, *rest]
        return dispatch(f"{program} {name}", module.COMMANDS, rest)
    parser = argparse.ArgumentParser(prog=f"{program} {name}", description=module.__doc__ or summary,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    try:
        parsed = parser.parse_args(arguments[1:])
        with optional_modules(name):
            return int(module.run(parsed))
    except RoboVLMsError as error:
        print(f"{program} {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program} {name}: interrupted", file=sys.stderr)
        return 130


def _overview(program: str, commands: dict[str, tuple[str, str]]) -> str:
    """The help text: every command that this installation has, with its summary."""
    present = {
        n: s for n, (m, s) in commands.items() if importlib.util.find_spec(f"robovlms_ros.cli.{m}")
    }
    width = max(map(len, present), default=0)
    lines = [f"usage: {program} COMMAND [OPTIONS]", ""]
    lines += [f"  {name:<{width}}  {summary}" for name, summary in present.items()]
    return "\n".join([*lines, "", f"`{program} COMMAND --help` explains one command."])


if __name__ == "__main__":
    sys.exit(main())
