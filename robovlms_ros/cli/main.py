"""`robovlms COMMAND`: finds the subcommand's module, runs it, turns the package's errors into one
clear line.

A subcommand is a module with `add_arguments(parser) -> None` and `run(args) -> int` (the exit
code), or a group with COMMANDS, OPTIONS and DEFAULT of its own.
"""

import argparse
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from robovlms_ros.core.schema import did_you_mean
from robovlms_ros.core.types import RoboVLMsError

Options = Callable[[argparse.ArgumentParser], None]

COMMANDS = {
    "demo": ("demo", "drive the simulated arm through the real ROS graph and report"),
    "check": ("check", "preflight of a checkpoint: does it fit this robot and this machine?"),
    "convert": ("convert", "write a published RoboVLMs checkpoint in this package's format"),
    "calibrate": ("calibrate", "scales for fp8 from recordings, stored with a checkpoint"),
    "train": ("train", "train a policy"),
    "improve": ("improve", "train on corrections; keep the result only where it is better"),
    "data": ("data", "select recordings by their marks: stats, filter, split, merge"),
    "export": ("export", "write recordings as a LeRobot folder"),
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
    """Raise MissingModuleError, with the extra to install, in place of the ModuleNotFoundError of
    an optional module.

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


def dispatch(
    program: str,
    commands: dict[str, tuple[str, str]],
    arguments: list[str],
    options: dict[str, Options] | None = None,
) -> int:
    """Run `arguments[0]` out of `commands` (name -> module, summary) with the rest.

    options: name -> function that adds a command's options; None where each module has its own
    `add_arguments`. With it a module is imported only once its options have been read.
    """
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
        if options is not None:
            add_arguments = options[name]
            description = inspect.getdoc(add_arguments)
        else:
            with optional_modules(name):
                module = importlib.import_module(_path(module_name))
            if hasattr(module, "COMMANDS"):
                rest = _with_default(module.DEFAULT, arguments[1:])
                return dispatch(f"{program} {name}", module.COMMANDS, rest, module.OPTIONS)
            add_arguments = module.add_arguments
            description = module.__doc__
        parser = argparse.ArgumentParser(
            prog=f"{program} {name}",
            description=description or summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_arguments(parser)
        parsed = parser.parse_args(arguments[1:])
        with optional_modules(name):
            return int(importlib.import_module(_path(module_name)).run(parsed))
    except RoboVLMsError as error:
        print(f"{program} {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program} {name}: interrupted", file=sys.stderr)
        return 130


def _path(module: str) -> str:
    return module if "." in module else f"robovlms_ros.cli.{module}"


def _with_default(default: str, arguments: list[str]) -> list[str]:
    """The arguments of a group of commands, with its default where they name none."""
    named = arguments and not arguments[0].startswith("-")
    return arguments if named or arguments[:1] in (["-h"], ["--help"]) else [default, *arguments]


def _overview(program: str, commands: dict[str, tuple[str, str]]) -> str:
    """The help text: every command that this installation has, with its summary."""
    present = {n: s for n, (m, s) in commands.items() if importlib.util.find_spec(_path(m))}
    width = max(map(len, present), default=0)
    lines = [f"usage: {program} COMMAND [OPTIONS]", ""]
    lines += [f"  {name:<{width}}  {summary}" for name, summary in present.items()]
    return "\n".join([*lines, "", f"`{program} COMMAND --help` explains one command."])


if __name__ == "__main__":
    sys.exit(main())
