"""The scenes of a run as they are done, one line each, so that a run that was stopped goes on from there.

The first line says what was run: a log is only continued under the same settings and with the same checkpoint.
"""

import hashlib
import json
from pathlib import Path
from typing import IO, Any

from robovlms_ros.core.resources import find_checkpoint
from robovlms_ros.core.types import RoboVLMsError
from robovlms_ros.sim.scenes import BenchSettings, Scene
from robovlms_ros.sim.tasks.evaluate import TaskEpisode

FORMAT = 1
_WEIGHED = (".json", ".yaml", ".yml", ".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".model")
"""Endings of the files that make a checkpoint what it is."""


class LogError(RoboVLMsError):
    """A log of episodes belongs to another run, or is not one."""


class EpisodeLog:
    """Append-only. identity: what must be the same, name -> value; `done` is what the file already holds.

    Raises LogError for a log of another run.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.done: dict[Scene, list[TaskEpisode]] = {}
        identity = json.loads(json.dumps(identity))  # as a file gives it back: lists, not tuples
        begun = path.exists() and self._read(identity)
        self._file: IO[str] = path.open("a", encoding="utf-8")
        if not begun:
            self._write({"rollout": FORMAT, **identity})

    def add(self, scene: Scene, episodes: list[TaskEpisode]) -> None:
        """Keep a scene that is done; from now on a kill does not lose it."""
        self.done[scene] = episodes
        self._write({"task": scene.task, "seed": scene.seed, "condition": scene.condition,
                     "episodes": [episode.as_json() for episode in episodes]})

    def close(self) -> None:
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _read(self, identity: dict[str, Any]) -> bool:
        """Whether there is a whole first line; a last line that a kill has cut off is taken away."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            rows = [json.loads(line) for line in whole.splitlines()]
            if rows:
                self._require_same(rows[0], identity)
            elif data and not data.startswith(b"{"):
                raise ValueError("it has no first line")
            for row in rows[1:]:
                episodes = [TaskEpisode.from_json(episode) for episode in row["episodes"]]
                self.done[Scene(row["task"], row["seed"], row["condition"])] = episodes
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LogError(
                f"{self.path}: not a log of episodes ({error}). Move it away, or name another --json."
            ) from error
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return bool(rows)

    def _require_same(self, head: dict[str, Any], identity: dict[str, Any]) -> None:
        if head.get("rollout") != FORMAT:
            raise ValueError(f"its first line has no 'rollout': {FORMAT}")
        for name, value in identity.items():
            if head.get(name) != value:
                raise LogError(
                    f"{self.path}: its episodes were run with {name} = {head.get(name)!r}, this command has {value!r}. "
                    "Name another --json, or delete the file to begin anew."
                )


def log_beside(report: Path) -> Path:
    """Where the episodes of a JSON report are kept."""
    return report.with_name(f"{report.stem}.episodes.jsonl")


def identity_of(settings: BenchSettings, latency: tuple[float, float] | None) -> dict[str, Any]:
    """What an episode depends on besides its scene. latency: the one asked for in every condition's place."""
    return {
        "checkpoint_sha256": checkpoint_digest(settings.checkpoint), "robot": settings.robot, "latency": latency,
        "time_limit": settings.limit, "blank": settings.blank, "every_goal": settings.every_goal,
    }


def checkpoint_digest(checkpoint: str) -> str:
    """A short digest of configuration, words and weights; empty for the expert. Raises LogError for what is not
    there."""
    if not checkpoint:
        return ""
    place = find_checkpoint(checkpoint)
    files = [place] if place.is_file() else sorted(p for p in place.glob("*") if p.suffix in _WEIGHED)
    if not files:
        raise LogError(f"{place}: no such checkpoint. Give a folder or file with one, or the name of a shipped one.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
