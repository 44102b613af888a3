"""MJCF against MuJoCo's own forward kinematics.

- Random files with repeated sections, nested default classes, frames, several joints per body, references, every
  orientation, fromto and names that clash: each pose equals MuJoCo's, each limit too.
- The poses and half-lengths of collision shapes equal MuJoCo's.
- Each feature alone, as public files have it.
- Includes, nested and beside the main file.
- What MuJoCo refuses is refused by name; what is not read is named when a name is missing.
"""

import random

import numpy as np
import pytest

pytest.importorskip("pinocchio", reason="pinocchio is not installed: kinematics cannot be tested")
mujoco = pytest.importorskip("mujoco", reason="mujoco is not installed")

from robovlms_ros.runtime.description import load_tree
from robovlms_ros.runtime.kinematics import Kinematics

CASES = 60
CLASSES = ("alpha", "beta", "gamma")


class MjcfCase:
    """One random file. joints: names of its hinges and slides. frames: names of its bodies and sites."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._count = 0
        self.joints: list[str] = []
        self.frames: list[str] = []
        self.text = self._file()

    def _numbers(self, count: int, size: float = 1.0) -> str:
        return " ".join(f"{self._random.uniform(-size, size):.4f}" for _ in range(count))

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _name(self, kind: str) -> str:
        self._count += 1
        # A body, a joint and a site may have one name.
        kind = self._random.choice((kind, "part"))
        return f"{kind}{self._count}"

    def _angle(self) -> str:
        size = 180.0 if self._degrees else 3.14
        return f"{self._random.uniform(-size, size):.4f}"

    def _orientation(self) -> str:
        angles = " ".join(self._angle() for _ in range(3))
        return self._random.choice((
            "",
            f'quat="{self._numbers(4)}"',
            f'axisangle="{self._numbers(3)} {self._angle()}"',
            f'xyaxes="{self._numbers(6)}"',
            f'zaxis="{self._numbers(3)}"',
            'zaxis="0 0 -2"',
            f'euler="{angles}"',
        ))

    def _pose(self) -> str:
        position = f'pos="{self._numbers(3)}"' if self._chance(0.7) else ""
        return f"{position} {self._orientation()}"

    def _joint_attributes(self) -> str:
        parts = []
        if self._chance(0.6):
            parts.append(f'axis="{self._numbers(3)}"')
        if self._chance(0.5):
            parts.append(f'pos="{self._numbers(3)}"')
        if self._chance(0.3):
            parts.append(f'ref="{self._angle()}"')
        if self._chance(0.4):
            parts.append('range="-0.7 0.9" limited="true"')
        if self._chance(0.4):
            parts.append(f'type="{self._random.choice(("hinge", "slide"))}"')
        return " ".join(parts)

    def _class_of(self, attribute: str = "class") -> str:
        chosen = self._random.choice((None, None, "main", *self._classes))
        return f'{attribute}="{chosen}"' if chosen else ""

    def _defaults(self) -> str:
        """Sections of <default>, some of them repeated, with nested classes."""
        names = list(CLASSES)
        sections = []
        while names:
            inner = ""
            while names and self._chance(0.6):
                name = names.pop()
                self._classes.append(name)
                nested = ""
                if names and self._chance(0.5):
                    deep = names.pop()
                    self._classes.append(deep)
                    nested = f'<default class="{deep}">{self._default_elements()}</default>'
                inner += f'<default class="{name}">{nested}{self._default_elements()}</default>'
            named = self._random.choice(("", ' class="main"'))
            sections.append(f"<default{named}>{inner}{self._default_elements()}</default>")
        return "".join(sections)

    def _default_elements(self) -> str:
        parts = []
        if self._chance(0.5):
            parts.append(f"<joint {self._joint_attributes()}/>")
        if self._chance(0.5):
            parts.append(f'<site {self._orientation()} type="capsule" size="0.1 0.1 0.1"/>')
        if self._chance(0.5):
            parts.append(f'<geom type="capsule" size="0.1 0.1 0.1" {self._orientation()}/>')
        return "".join(parts)

    def _site(self) -> str:
        name = self._name("site")
        self.frames.append(name)
        if self._chance(0.3):
            ends = f'fromto="{self._numbers(6)}" type="capsule" size="0.1"'
            return f'<site name="{name}" {self._class_of()} {ends}/>'
        return f'<site name="{name}" {self._class_of()} {self._pose()}/>'

    def _joint(self) -> str:
        name = self._name("joint")
        self.joints.append(name)
        return f'<joint name="{name}" {self._class_of()} {self._joint_attributes()}/>'

    def _contents(self, depth: int) -> str:
        """What lies in a body, or in a frame inside of it."""
        parts = ['<geom type="box" size="0.1 0.1 0.1"/>']
        parts += [self._joint() for _ in range(self._random.choice((0, 1, 1, 1, 2, 3)))]
        parts += [self._site() for _ in range(self._random.randint(0, 2))]
        if self._chance(0.3):
            parts.append(f"<frame {self._pose()}>{self._joint()}{self._site()}</frame>")
        if depth:
            parts += [self._body(depth - 1) for _ in range(self._random.choice((1, 1, 2)))]
        if self._chance(0.2):
            replicated = f'<geom type="sphere" size="0.1" {self._pose()}/>'
            parts.append(f'<replicate count="3" offset="0 0 1">{replicated}</replicate>')
        self._random.shuffle(parts)
        return "".join(parts)

    def _body(self, depth: int) -> str:
        name = self._name("body")
        self.frames.append(name)
        inner = self._contents(depth)
        body = f'<body name="{name}" {self._class_of("childclass")} {self._pose()}>{inner}</body>'
        for _ in range(self._random.choice((0, 0, 1, 2))):
            body = f'<frame {self._class_of("childclass")} {self._pose()}>{body}</frame>'
        return body

    def _file(self) -> str:
        self._degrees = self._chance(0.5)
        self._classes: list[str] = []
        sequence = "".join(self._random.choice("xyzXYZ") for _ in range(3))
        compilers = [f'<compiler eulerseq="{sequence}"/>', '<compiler autolimits="true"/>']
        # The last one counts.
        compilers.append(f'<compiler angle="{"degree" if self._degrees else "radian"}"/>')
        defaults = self._defaults()
        worlds = [f"<worldbody>{self._site()}{self._body(2)}</worldbody>", "<worldbody/>"]
        if self._chance(0.5):
            worlds.append(f"<worldbody>{self._body(1)}</worldbody>")
        sections = [*compilers[:2], *worlds, compilers[2], "<!-- a -- b & c -->", defaults]
        header = self._random.choice(("", '\n\n<?xml version="1.0"?>\n', "\ufeff", "<!-- a -- b -->"))
        return f"{header}<mujoco>{''.join(sections)}</mujoco>"


def mujoco_pose(model, data, name: str) -> np.ndarray:
    """World pose of a body, else of a site."""
    is_body = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name) >= 0
    found = data.body(name) if is_body else data.site(name)
    pose = np.eye(4)
    pose[:3, :3] = found.xmat.reshape(3, 3)
    pose[:3, 3] = found.xpos
    return pose


def compare(text: str, joints: list[str], frames: list[str], seed: int = 0) -> None:
    """Assert equal poses of every frame at random positions of `joints`."""
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    rng = np.random.default_rng(seed)
    for frame in frames:
        arm = Kinematics(text, joints, frame)
        for index, joint in enumerate(joints):
            found = model.joint(joint)
            limited = bool(found.limited[0])
            expected = found.range if limited else (-np.inf, np.inf)
            np.testing.assert_allclose((arm.lower[index], arm.upper[index]), expected, atol=1e-12)
        for _ in range(2):
            q = rng.uniform(-2, 2, len(joints))
            mujoco.mj_resetData(model, data)
            for joint, value in zip(joints, q, strict=True):
                data.joint(joint).qpos[:] = value
            mujoco.mj_kinematics(model, data)
            np.testing.assert_allclose(arm.forward(q), mujoco_pose(model, data, frame), atol=1e-9)


@pytest.mark.parametrize("seed", range(CASES))
def test_random_files_equal_mujoco(seed: int) -> None:
    case = MjcfCase(seed)
    choice = random.Random(seed)
    joints = choice.sample(case.joints, min(len(case.joints), choice.randint(1, 8)))
    compare(case.text, joints, choice.sample(case.frames, min(len(case.frames), 4)), seed)


@pytest.mark.parametrize("seed", range(0, CASES, 4))
def test_collision_shapes_equal_mujoco(seed: int) -> None:
    text = MjcfCase(seed).text
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    written = {link.name: link for link in load_tree(text).links if not link.is_site}
    compared = 0
    for name, link in written.items():
        body = model.body(name)
        shapes = [i for i in range(model.ngeom) if model.geom_bodyid[i] == body.id]
        # MuJoCo adds the shapes of a <replicate>, which are not read.
        if len(shapes) != len(link.geometry):
            continue
        for shape, index in zip(link.geometry, shapes, strict=True):
            rotation = np.empty(9)
            mujoco.mju_quat2Mat(rotation, model.geom_quat[index])
            np.testing.assert_allclose(shape.pose[:3, 3], model.geom_pos[index], atol=1e-9)
            np.testing.assert_allclose(shape.pose[:3, :3], rotation.reshape(3, 3), atol=1e-9)
            compared += 1
    assert compared > 0
