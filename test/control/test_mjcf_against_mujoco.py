"""MJCF against MuJoCo's own forward kinematics.

- Random files with repeated sections, nested default classes, frames, several joints per body, references, every
  orientation, fromto and names that clash: each pose equals MuJoCo's, each limit too.
- The poses and half-lengths of collision shapes equal MuJoCo's.
- Each feature alone, as public files have it.
- Includes, nested and beside the main file.
- Refusals of MuJoCo are refusals by name; the error on an absent name refers to elements that are skipped.
"""

import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pinocchio", reason="pinocchio is not installed: kinematics cannot be tested")
mujoco = pytest.importorskip("mujoco", reason="mujoco is not installed")

from robovlms_ros.control.description.model import load_tree
from robovlms_ros.control.kinematics import Kinematics, KinematicsError

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
        """Contents of a body, or of a frame inside of it."""
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


def mjcf(world: str, sections: str = "") -> str:
    return f"<mujoco>{sections}<worldbody>{world}</worldbody></mujoco>"


def arm(inner: str, joint: str = '<joint name="j" axis="0 1 0"/>') -> str:
    geom = '<geom type="sphere" size="0.1"/>'
    return f'<body name="base" pos="0 0 1">{geom}<body name="link">{geom}{joint}{inner}</body></body>'


TIP = '<site name="tip" pos="0.3 0.2 0.1"/>'
UNLIMITED = '<compiler autolimits="false"/>'
TURNED = '<site name="tip" euler="1 0 0"/>'
SLIDES = '<default><default class="b"><joint type="slide"/></default></default>'
TWICE = "<default><default class='a'/><default class='a'/></default>"
NESTED = """<default><site pos="0 0 1"/><default class="a"><site euler="30 0 0"/></default></default>
<default><site pos="0 0 2"/></default>"""
FROMTO = '<site name="tip" type="capsule" size="0.1" fromto="0 0 0 1 2 3"/>'


@pytest.mark.parametrize(
    "text",
    [
        mjcf(arm('<site name="tip" class="a"/>'), NESTED),
        mjcf(arm('<site name="tip"/>'), NESTED),
        mjcf(arm('<site name="tip" euler="1 0 0"/>'), '<compiler angle="radian"/><compiler eulerseq="ZYX"/>'),
        mjcf(arm('<site name="tip" quat="1 0 0 1"/>'), '<default><site euler="90 0 0"/></default>'),
        mjcf(arm(FROMTO)),
        mjcf(arm(FROMTO.replace("1 2 3", "0 0 -1"))),
        mjcf(arm(FROMTO.replace("<site", '<site pos="0 0 0" euler="1 2 3"'))),
        mjcf(f'<frame pos="1 2 3" euler="10 20 30"><frame zaxis="1 1 0">{arm(TIP)}</frame></frame>'),
        mjcf(arm(f'<frame pos="1 0 0" euler="0 0 90"><joint name="k" pos="1 0 0"/>{TIP}</frame>')),
        mjcf(arm(TIP, '<joint name="j" pos="0 0 1"/><joint name="k" type="slide" axis="1 1 0" ref="0.3"/>')),
        mjcf(arm(TIP, '<joint name="j" ref="30" range="-90 90"/>')),
        mjcf(arm(TIP, '<joint name="j" class="b"/>'), SLIDES),
        mjcf(arm(TIP) + '<replicate count="3" offset="1 0 0"><body name="b"><geom size="1"/></body></replicate>'),
        mjcf(arm(TIP, '<joint name="base" axis="0 1 0"/><joint name="tip" type="ball"/>')),
    ],
)
def test_each_feature_equals_mujoco(text: str) -> None:
    tree = load_tree(text)
    joints = [name for name, joint in tree.joints().items() if joint.moves]
    compare(text, joints, ["tip", "link"])


def test_a_file_without_limits_has_none() -> None:
    free = Kinematics(mjcf(arm(TIP, '<joint name="j" range="-90 90" limited="false"/>')), ["j"], "tip")
    assert free.lower[0] == -np.inf and free.upper[0] == np.inf


def test_includes_beside_their_file_and_beside_the_main_one(tmp_path: Path) -> None:
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    (tmp_path / "arm.xml").write_text(
        '<mujoco><compiler angle="degree"/><include file="parts/arm.xml"/><include file="parts/settings.xml"/></mujoco>'
    )
    (tmp_path / "parts" / "arm.xml").write_text(
        "<mujocoinclude><worldbody><body name='link' euler='1 0 0'><geom size='1'/><joint name='j'/>"
        "<include file='deep/tip.xml'/><include file='parts/deep/end.xml'/></body></worldbody></mujocoinclude>"
    )
    (tmp_path / "parts" / "settings.xml").write_text("<x><compiler angle='radian'/></x>")
    (tmp_path / "parts" / "deep" / "tip.xml").write_text("<x><site name='tip' pos='1 2 3'/></x>")
    (tmp_path / "parts" / "deep" / "end.xml").write_text("<x><site name='end' euler='0 1 0'/></x>")
    model = mujoco.MjModel.from_xml_path(str(tmp_path / "arm.xml"))
    data = mujoco.MjData(model)
    data.qpos[:] = 0.4
    mujoco.mj_kinematics(model, data)
    for name in ("tip", "end"):
        pose = Kinematics(tmp_path / "arm.xml", ["j"], name).forward(np.array([0.4]))
        np.testing.assert_allclose(pose, mujoco_pose(model, data, name), atol=1e-9)
    (tmp_path / "parts" / "settings.xml").write_text("<x><compiler")
    with pytest.raises(KinematicsError, match=r"settings\.xml', which it includes: unclosed token"):
        Kinematics(tmp_path / "arm.xml", ["j"], "tip")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (mjcf(arm(TIP), '<compiler coordinate="global"/>'), "coordinate = 'global': must be local"),
        (mjcf(arm(TIP), '<compiler angle="gon"/>'), "compiler angle = 'gon': must be degree or radian"),
        (mjcf(arm(TURNED), '<compiler eulerseq="xya"/>'), "eulerseq = 'xya': must be three letters"),
        (mjcf(arm(TIP), '<compiler eulerseq="xy"/>'), "eulerseq = 'xy': must be three letters"),
        (mjcf(arm(TIP), '<default class="a"/>'), "top-level default has the class 'a'"),
        (mjcf(arm(TIP), "<default><default/></default>"), "a default inside the class 'main' has no class"),
        (mjcf(arm(TIP), TWICE), "two defaults have the class 'a'"),
        (mjcf(arm('<site name="tip" class="a"/>')), "unknown default class 'a'"),
        (mjcf(arm('<site name="tip" euler="1 0 0" zaxis="1 0 0"/>')), "'tip' has several orientations, zaxis, euler"),
        (mjcf(arm('<site name="tip" quat="0 0 0 0"/>')), "site 'tip': quat = .* has no direction"),
        (mjcf(arm('<site name="tip" zaxis="0 0 0"/>')), "site 'tip': zaxis = .* has no direction"),
        (mjcf(arm('<site name="tip" xyaxes="1 0 0 2 0 0"/>')), "site 'tip': xyaxes = .* has no direction"),
        (mjcf(arm('<site name="tip" pos="1 2"/>')), "site 'tip': pos = '1 2': must be 3 numbers"),
        (mjcf(arm('<site name="tip" pos="1 2 nan"/>')), "site 'tip': pos = 'nan': must be a finite number"),
        (mjcf(arm(FROMTO.replace("<site", '<site pos="1 0 0"'))), "site 'tip': has both pos and fromto"),
        (mjcf(arm(TIP, '<joint name="j"/><joint name="j"/>')), "two joint have the name 'j'"),
        (mjcf(arm(TIP) + arm("")), "two body have the name 'base'"),
        (mjcf(arm(TIP, '<joint name="j" axis="0 0 0"/>')), "joint 'j': axis = .* has no direction"),
        (mjcf(arm(TIP, '<joint name="j" type="screw"/>')), "joint 'j': type = 'screw': must be one of hinge"),
        (mjcf(arm(TIP, '<joint name="j" limited="true"/>')), "joint 'j': is limited, but its range"),
        (mjcf(arm(TIP, '<joint name="j" range="-1 1"/>'), UNLIMITED), "joint 'j': has a range but not"),
        (mjcf(arm(TIP + "<spring/>")), "body 'link' holds <spring>, which is not known"),
        (mjcf('<joint name="j"/>'), "joint 'j' lies in the worldbody"),
    ],
    ids=range(23),
)
def test_refusals_of_mujoco(text: str, message: str) -> None:
    with pytest.raises(KinematicsError, match=message):
        Kinematics(text, ["j"], "tip")
    if "nan" not in text:
        with pytest.raises(ValueError):
            mujoco.MjModel.from_xml_string(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (mjcf(arm('<replicate count="2"><site name="tip"/></replicate>')), "frame 'tip' .*also holds <replicate>"),
        (mjcf(arm("") + '<attach model="m" prefix="x"/>'), "frame 'tip' .*also holds <attach>, whose contents"),
        (mjcf(arm("") + '<body name="tip"><freejoint align="true"/></body>'), "also holds <freejoint align>"),
        (mjcf(arm(TIP, '<joint name="j"/><joint name="k"/>'), "<equality><joint joint1='k' joint2='j'/></equality>"),
         "joint 'k' on the way to the tool follows another joint by <equality>"),
        (mjcf(arm(TIP, '<joint name="j" type="ball"/>')), "joint 'j' of type ball has not one degree of freedom"),
    ],
    ids=("replicate", "attach", "align", "equality", "ball"),
)
def test_skipped_elements_are_named(text: str, message: str) -> None:
    with pytest.raises(KinematicsError, match=message):
        Kinematics(text, ["j"], "tip")
