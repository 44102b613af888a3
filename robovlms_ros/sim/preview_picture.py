"""A picture of an episode: the tool's predicted path in both cameras at several moments."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robovlms_ros.control.executor import Decision
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.preview import ToolPreview, draw_preview, preview_of
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.types import ActionChunk
from robovlms_ros.observations.camera_model import load_calibration
from robovlms_ros.sim.rollout import EpisodeSettings, RolloutFrame, build_loop
from robovlms_ros.sim.scenes import START_NS, load_agent
from robovlms_ros.sim.tasks.language import INSTRUCTIONS
from robovlms_ros.sim.world import CAMERAS, SimWorld, WorldError

IMAGE_SIZE = 240
MOMENTS = 6
GAP = 4  # pixels between two pictures


def draw_episode(path: Path, checkpoint: str, seed: int, limit: float = 12.0) -> bool:
    """Write a picture of one scene's episode: a row for each camera, MOMENTS columns in time.

    limit: simulated s. Returns True where the episode succeeded. Raises WorldError where no chunk
    was decided on.
    """
    world = SimWorld(seed, image_size=IMAGE_SIZE)
    loop = build_loop(world, settings=EpisodeSettings(limit=limit))
    robot = load_robot("panda")
    calibrations = {name: load_calibration(f"panda_{name}") for name in CAMERAS}
    cameras = {name: calibrations[name].model() for name in CAMERAS}
    links = {}
    for name, calibration in calibrations.items():
        frame = calibration.pose.frame
        if frame is not None:
            links[name] = Kinematics.for_robot(replace(robot, eef_frame=frame))
    newest: list[ToolPreview] = []
    columns: list[list[NDArray[np.uint8]]] = []

    def on_decision(chunk: ActionChunk, decision: Decision) -> None:
        newest[:] = [preview_of(chunk, decision, loop.kinematics)]

    def on_frame(frame: RolloutFrame) -> None:
        if not newest:
            return
        state = frame.observation.state
        assert state is not None
        column = []
        for name, image in frame.observation.images.items():
            pose = calibrations[name].pose.matrix()
            if name in links:
                pose = links[name].forward(state.positions) @ pose
            camera = cameras[name]
            assert camera is not None
            column.append(draw_preview(image, newest[0], camera, pose))
        columns.append(column)

    loop.on_decision = on_decision
    loop.on_frame = on_frame
    try:
        world.reset(seed)
        world.time_ns = START_NS
        words = next(iter(INSTRUCTIONS))
        rng = np.random.default_rng((seed, 2))
        outcome = loop.run(load_agent(checkpoint), [(0.0, words)], rng)
    finally:
        world.close()
    if not columns:
        raise WorldError(f"scene {seed}: no chunk was decided on, there is nothing to draw.")
    chosen = np.linspace(0, len(columns) - 1, MOMENTS).round().astype(int)
    side = IMAGE_SIZE + GAP
    canvas = Image.new("RGB", (MOMENTS * side - GAP, len(CAMERAS) * side - GAP), "white")
    for i, index in enumerate(chosen):
        for row, image in enumerate(columns[index]):
            canvas.paste(Image.fromarray(image), (i * side, row * side))
    canvas.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)
    return outcome.success
