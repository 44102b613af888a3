"""URDF:

- random robots (any axes and origins, revolute, continuous, prismatic, fixed and mimic joints, links and joints of one
  name, prefixes, byte order marks) equal an independent forward kinematics, in pose and Jacobian;
- a link and a joint of one name; every spelling that ROS accepts and XML parsers refuse;
- collision shapes survive with their poses;
- refusals of ROS and of the caps carry their reason, the element and its name;
- damaged files, URDF and MJCF, raise RoboVLMsError and nothing else.
"""

import random
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("pinocchio", reason="pinocchio is not installed: kinematics cannot be tested")

from robovlms_ros.control.description.model import load_tree
from robovlms_ros.control.kinematics import Kinematics, KinematicsError
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.types import RoboVLMsError

CASES = 60
MUTATIONS = 300
NAMES = ("gripper", "wrist", "arm", "jaw", "base", "tool")


def turn(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation about a unit axis, by Rodrigues' formula."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


class UrdfCase:
    """One random robot, and its forward kinematics in numpy."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        count = self._random.randint(2, 9)
        self.links = [f"{self._random.choice(NAMES)}{i // 2}_{i}" for i in range(count)]
        self.parents = [-1] + [self._random.randrange(max(0, i - 2), i) for i in range(1, count)]
        self.joints = [""] + [self._joint_name(i) for i in range(1, count)]
        kinds = ("revolute", "continuous", "prismatic", "fixed", "mimic")
        self.kinds = [""] + [self._random.choice(kinds) for _ in range(1, count)]
        # A mimic joint needs another joint, and may follow one that mimics as well.
        free = [i for i in range(1, count) if self.kinds[i] not in ("fixed", "mimic")]
        if not free:
            self.kinds[1] = "revolute"
            free = [1]
        self.masters = {i: self._random.choice(free) for i in range(1, count) if self.kinds[i] == "mimic"}
        mimics = sorted(self.masters)
        if len(mimics) > 1:
            self.masters[mimics[1]] = mimics[0]
        self.multipliers = [self._random.uniform(-2, 2) for _ in range(count)]
        self.offsets = [self._random.uniform(-1, 1) for _ in range(count)]
        self.origins = [self._vector() for _ in range(count)]
        self.angles = [3 * self._vector() for _ in range(count)]
        self.axes = [self._random.choice((np.eye(3)[0], np.eye(3)[2], self._vector())) for _ in range(count)]
        self.free = free

    def _joint_name(self, link: int) -> str:
        """A name of its own, that of its own link, or that of another link."""
        other = self.links[(link * 7 + 1) % len(self.links)]
        clashes = (self.links[link], f"joint{link}")
        return self._random.choice(clashes if link % 2 else (*clashes, f"{other}_joint"))

    def _vector(self) -> np.ndarray:
        return np.array([round(self._random.uniform(-1, 1), 4) for _ in range(3)])

    def value(self, joint: int, positions: dict[int, float]) -> float:
        if joint in self.masters:
            return self.multipliers[joint] * self.value(self.masters[joint], positions) + self.offsets[joint]
        return positions.get(joint, 0.0)

    def pose(self, link: int, positions: dict[int, float]) -> np.ndarray:
        """(4, 4) root_T_link."""
        if self.parents[link] < 0:
            return np.eye(4)
        x, y, z = np.eye(3)
        roll, pitch, yaw = self.angles[link]
        local = np.eye(4)
        local[:3, :3] = turn(z, yaw) @ turn(y, pitch) @ turn(x, roll)
        local[:3, 3] = self.origins[link]
        axis = self.axes[link] / np.linalg.norm(self.axes[link])
        motion = np.eye(4)
        if self.kinds[link] == "prismatic":
            motion[:3, 3] = axis * self.value(link, positions)
        elif self.kinds[link] != "fixed":
            motion[:3, :3] = turn(axis, self.value(link, positions))
        return self.pose(self.parents[link], positions) @ local @ motion

    def text(self) -> str:
        parts = [f'<link name="{name}"><visual/></link>' for name in self.links]
        for i in range(1, len(self.links)):
            kind = "revolute" if self.kinds[i] == "mimic" else self.kinds[i]
            inner = f'<parent link="{self.links[self.parents[i]]}"/><child link="{self.links[i]}"/>'
            inner += f'<origin xyz="{_words(self.origins[i])}" rpy="{_words(self.angles[i])}"/>'
            inner += f'<axis xyz="{_words(self.axes[i])}"/><limit lower="-2" upper="2" effort="-1" velocity="1"/>'
            if i in self.masters:
                inner += f'<mimic joint="{self.joints[self.masters[i]]}" multiplier="{self.multipliers[i]!r}" '
                inner += f'offset="{self.offsets[i]!r}"/>'
            parts.append(f'<joint name="{self.joints[i]}" type="{kind}">{inner}</joint>')
        parts.append("<xacro:leftover value='${x}'/>")
        parts.append('<transmission name="t"><joint name="j"/></transmission>')
        self._random.shuffle(parts)
        header = self._random.choice((
            "", '\ufeff<?xml version="1.0" encoding="latin-1"?>', '\n\n <?xml version="1.0"?>\n',
            '<!-- made -- by & hand -->\n<?xml version="1.0"?>',
        ))
        return f'{header}<robot name="case" version="1.0">{"".join(parts)}</robot>\n'


def _words(values: np.ndarray) -> str:
    return " ".join(repr(float(v)) for v in values)


@pytest.mark.parametrize("seed", range(CASES))
def test_random_robots_equal_an_independent_forward_kinematics(seed: int) -> None:
    case = UrdfCase(seed)
    choice = random.Random(seed)
    arm_joints = choice.sample(case.free, choice.randint(1, len(case.free)))
    text = case.text()
    for link in range(1, len(case.links)):
        arm = Kinematics(text, [case.joints[i] for i in arm_joints], case.links[link], case.links[0])
        q = np.array([choice.uniform(-2, 2) for _ in arm_joints])
        pose = case.pose(link, dict(zip(arm_joints, q, strict=True)))
        np.testing.assert_allclose(arm.forward(q), pose, atol=1e-9)
        np.testing.assert_allclose(arm.tool_positions(q[None])[0], pose[:3, 3], atol=1e-9)
        step = 1e-6
        jacobian = arm.jacobian(q)
        for column, _ in enumerate(arm_joints):
            positions = dict(zip(arm_joints, q + step * np.eye(len(q))[column], strict=True))
            moved = case.pose(link, positions)[:3, 3]
            np.testing.assert_allclose(jacobian[:3, column], (moved - pose[:3, 3]) / step, atol=1e-4)
    expected = [(-np.inf, np.inf) if case.kinds[i] == "continuous" else (-2, 2) for i in arm_joints]
    np.testing.assert_array_equal(np.stack([arm.lower, arm.upper], axis=1), expected)


def joint(name: str, parent: str, child: str, inner: str = "", kind: str = "revolute") -> str:
    limit = '<limit lower="-2" upper="2" effort="1" velocity="1"/>'
    return (f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/>'
            f'<origin xyz="0 0 1"/><axis xyz="0 1 0"/>{limit}{inner}</joint>')


def links(*names: str) -> str:
    return "".join(f'<link name="{name}"/>' for name in names)


def robot(*parts: str) -> str:
    return f'<robot name="r">{"".join(parts)}</robot>'


ARM = robot(links("base", "arm", "tool"), joint("shoulder", "base", "arm"), joint("elbow", "arm", "tool"))


def test_a_link_and_a_joint_of_one_name() -> None:
    text = robot(
        links("base", "arm", "gripper", "jaw"), joint("pan", "base", "arm"), joint("roll", "arm", "gripper"),
        joint("gripper", "gripper", "jaw"),
    )
    arm = Kinematics(text, ["pan", "roll"], "gripper", "base")
    np.testing.assert_allclose(arm.forward(np.array([np.pi / 2, 0.3]))[:3, 3], [1, 0, 1], atol=1e-12)
    jaw = Kinematics(text, ["pan", "roll"], "jaw", "base")
    np.testing.assert_allclose(jaw.forward(np.array([np.pi / 2, 0.0]))[:3, 3], [2, 0, 1], atol=1e-12)
    own = Kinematics(text, ["pan", "roll", "gripper"], "jaw", "base")
    assert own.inverse(own.forward(np.array([0.1, 0.2, 0.3]))[None], np.zeros(3)).reached[0]


@pytest.mark.parametrize(
    "change",
    [
        ("<robot", "\n  \n<?xml version='1.0'?>\n<robot"),
        ("<robot", "\ufeff<?xml version='1.0' encoding='UTF-8'?><robot"),
        ("<robot", "<!-- a -- b -->\n<?xml version='1.0'?><robot"),
        ("<robot", "<?xml version='1.0' encoding='utf-16'?><robot"),
        ("<link", "<xacro:property name='x' value='1'/><link"),
        ("<link", "<gazebo><a:b c:d='1'/></gazebo><link"),
        ('effort="1"', 'effort="-1"'),
        ('effort="1"', 'effort="none"'),
        ("<axis", '<dynamics damping="much"/><axis'),
        ('name="r"', 'name="R & D"'),
        ('xyz="0 0 1"', 'xyz=" 0\t0\n1 "'),
        ("</robot>", "</robot></robot>"),
        ("</robot>", "</robot><robot name='second'/>"),
    ],
    ids=lambda change: change[1][:30],
)
def test_spellings_that_ros_accepts(change: tuple[str, str], tmp_path: Path) -> None:
    text = ARM.replace(*change)
    assert text != ARM
    path = tmp_path / "arm.urdf"
    path.write_text(text)
    q = np.array([0.4, -0.7])
    expected = Kinematics(ARM, ["shoulder", "elbow"], "tool").forward(q)
    for description in (text, path, str(path)):
        np.testing.assert_array_equal(Kinematics(description, ["shoulder", "elbow"], "tool").forward(q), expected)


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "arm.urdf"
    path.write_bytes(ARM.replace("<link", "<!-- 90\xb0 --><link").encode("latin-1"))
    assert Kinematics(path, ["shoulder"], "tool").joints == ("shoulder",)


def test_quaternions() -> None:
    text = ARM.replace('xyz="0 0 1"', 'xyz="0 0 1" quat_xyzw="0 0 2 2"')
    pose = Kinematics(text, ["shoulder"], "arm").forward(np.zeros(1))
    np.testing.assert_allclose(pose[:3, :3], turn(np.eye(3)[2], np.pi / 2), atol=1e-12)


def test_collision_shapes_survive() -> None:
    shapes = """<collision><origin xyz="1 2 3" rpy="0 0 1.5"/><geometry><box size="1 2 3"/></geometry></collision>
    <collision name="second"><geometry><mesh filename="package://r/a.stl" scale="1 1 -1"/></geometry></collision>"""
    tree = load_tree(robot(f'<link name="base">{shapes}</link>'))
    first, second = tree.links[0].geometry
    assert dict(first.attributes) == {"type": "box", "size": "1 2 3"}
    np.testing.assert_allclose(first.pose[:3, 3], [1, 2, 3])
    np.testing.assert_allclose(first.pose[:3, :3], turn(np.eye(3)[2], 1.5))
    assert dict(second.attributes) == {"type": "mesh", "filename": "package://r/a.stl", "scale": "1 1 -1"}
    np.testing.assert_array_equal(second.pose, np.eye(4))


LOOP = robot(links("base", "a", "b"), joint("j", "a", "b"), joint("k", "b", "a"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (robot(), "it has no link"),
        (robot("<link/>"), "a <link> has no name"),
        (robot(links("base", "base")), "two <link> have the name 'base'"),
        (robot(links("base", "a", "b"), joint("j", "base", "a"), joint("j", "a", "b")),
         "two <joint> have the name 'j'"),
        (robot(links("base", "a")), "one link must have no parent.*'base', 'a'"),
        (LOOP, "not connected to 'base'.*: 'a', 'b'"),
        (robot(links("a", "b"), joint("j", "a", "b"), joint("k", "b", "a")), "none: the joints form a circle"),
        (robot(links("base", "a", "b"), joint("j", "base", "b"), joint("k", "a", "b")),
         "link 'b' is the child of two joints, 'j' and 'k'"),
        (robot(links("base"), joint("j", "base", "hand")), "joint 'j': its child link 'hand' is not a link"),
        (robot(links("base", "a"), '<joint name="j" type="fixed"/>'), "joint 'j' has no <parent link=...>"),
        (robot(links("base", "a"), joint("j", "base", "a", kind="hinge")), "joint 'j': type = 'hinge': must be one of"),
        (ARM.replace('axis xyz="0 1 0"', 'axis xyz="0 0 0"'), "joint 'shoulder': axis xyz = .* has no direction"),
        (ARM.replace('axis xyz="0 1 0"', 'axis xyz="0 1"'), "axis xyz = '0 1': must be 3 numbers"),
        (ARM.replace('xyz="0 0 1"', 'xyz="0, 0, 1"'), "origin xyz = '0, 0, 1': must be 3|must be a finite number"),
        (ARM.replace('xyz="0 0 1"', 'xyz="0 0 nan"'), "origin xyz = 'nan': must be a finite number"),
        (ARM.replace('xyz="0 0 1"', 'xyz="0 0 1_0"'), "origin xyz = '1_0': must be a finite number"),
        (ARM.replace('xyz="0 0 1"', 'xyz="0 0 1e300"'), r"larger than 1e\+06"),
        (ARM.replace('lower="-2"', 'lower="low"'), "joint 'shoulder': limit lower = 'low'"),
        (re.sub("<limit[^>]*>", "", ARM), "joint 'shoulder' of type revolute has no <limit>"),
        (ARM.replace("<axis", "<mimic/><axis"), "joint 'shoulder': <mimic> names no joint"),
        ("<!DOCTYPE robot [<!ENTITY a 'b'>]>" + ARM, "declares the XML entity 'a'"),
        (robot("<a>" * 300), "elements lie more than 200 deep"),
        (robot("<a/>" * 200_001), "more than 200000 elements"),
        (robot("<!--", "a" * 17_000_000, "-->"), "larger than 16777216 bytes"),
        ("", "the robot description cannot be read as XML"),
        ("<" + "a" * 5000 + "/>", r"root element <a{100}\.\.\.>"),
    ],
    ids=lambda value: None if len(value) > 60 else value,
)
def test_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(KinematicsError, match=message) as caught:
        Kinematics(text, ["shoulder"], "tool")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("inner", "joints", "frame", "message"),
    [
        ('<mimic joint="elbow"/>', ["shoulder"], "tool", "joint 'shoulder' mimics 'elbow': .* Name the joint"),
        ('<mimic joint="nobody"/>', ["elbow"], "tool", "joint 'shoulder' mimics 'nobody', which is no joint"),
        ('<mimic joint="shoulder"/>', ["elbow"], "tool", "joint 'shoulder' mimics itself"),
        ("", ["shoulder"], "elbow", "'elbow' is a joint: name the link that it moves, 'tool'"),
    ],
)
def test_joints_and_frames_that_do_not_serve(inner: str, joints: list[str], frame: str, message: str) -> None:
    text = robot(links("base", "arm", "tool"), joint("shoulder", "base", "arm", inner), joint("elbow", "arm", "tool"))
    with pytest.raises(KinematicsError, match=message):
        Kinematics(text, joints, frame)


@pytest.mark.parametrize("kind", ["fixed", "floating", "planar"])
def test_a_joint_without_one_degree_of_freedom(kind: str) -> None:
    text = ARM.replace('name="shoulder" type="revolute"', f'name="shoulder" type="{kind}"')
    with pytest.raises(KinematicsError, match=f"joint 'shoulder' of type {kind} has not one degree of freedom"):
        Kinematics(text, ["shoulder"], "tool")
    # A joint that is none of the arm's stays at its origin.
    np.testing.assert_allclose(Kinematics(text, ["elbow"], "tool").forward(np.zeros(1))[:3, 3], [0, 0, 2])


def test_paths_without_a_regular_file(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path, tmp_path / "absent.urdf", Path("a\0b")):
        with pytest.raises(KinematicsError, match="cannot be read"):
            Kinematics(path, ["shoulder"], "tool")


def test_an_error_of_pinocchio_names_the_description(monkeypatch: pytest.MonkeyPatch) -> None:
    import pinocchio

    def fail(*_: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(pinocchio, "Frame", fail)
    with pytest.raises(KinematicsError, match="robot description: pinocchio cannot build it: RuntimeError: no such"):
        Kinematics(ARM, ["shoulder"], "tool")


HOSTILE = ("", " ", "nan", "inf", "-1e308", "1e-320", "0", "\0", "\ud800", "&", "&x;", "&#0;", "<", ">", '"', "'", "--",
           "%s", "${x}", "../../etc", "a" * 3000, "1 " * 500, "robot", "link", "<!--", "-->", "<![CDATA[", "]]>", "<?x",
           "<robot>", "</robot>", "\ufeff", "\u2028", "0x10", "1_0", "base", "joint", "<!DOCTYPE a>")


def damaged(text: str, choice: random.Random) -> str:
    """The text after one to three mutations: characters, attribute values, elements."""
    for _ in range(choice.randint(1, 3)):
        begin = choice.randrange(len(text) + 1)
        end = min(len(text), begin + choice.choice((0, 1, 5, 80)))
        kind = choice.choice((0, 1, 1, 1, 2, 2, 2, 3, 3, 4))
        values = list(re.finditer(r'"[^"]*"', text))
        tags = list(re.finditer(r"<[^<>]*>", text))
        if kind == 0:
            text = text[:begin] + choice.choice(HOSTILE) + text[end:]
        elif kind == 1 and values:
            value = choice.choice(values)
            text = f'{text[: value.start()]}"{choice.choice(HOSTILE)}"{text[value.end() :]}'
        elif kind == 2 and len(values) > 1:
            value, other = choice.sample(values, 2)
            text = text[: value.start()] + other.group() + text[value.end() :]
        elif kind == 3 and tags:
            tag = choice.choice(tags)
            text = text[: tag.start()] + tag.group() * choice.choice((0, 2, 40)) + text[tag.end() :]
        elif kind == 4:
            text = text[:begin] if choice.random() < 0.5 else text[begin:]
    return text


MJCF = """<mujoco><compiler angle="radian" eulerseq="zyx"/><default><joint axis="0 1 0" range="-1 1"/>
<default class="tip"><site pos="0 0 1" euler="1 2 3"/></default></default>
<worldbody><frame pos="1 2 3" childclass="tip">
<body name="base"><body name="arm" pos="0 0 1"><joint name="shoulder"/><joint name="elbow" pos="0 0 1" ref="0.1"/>
<geom type="capsule" fromto="0 0 0 0 0 1" size="0.1"/><site name="tool"/></body></body></frame></worldbody></mujoco>"""


@pytest.fixture(scope="module")
def sources() -> list[tuple[str, tuple[str, ...], str]]:
    """(text, joints, tool frame) of sound descriptions."""
    shipped = [load_robot(name) for name in ("panda", "widowx")]
    found = [(r.description_path.read_text(), r.joints, r.eef_frame) for r in shipped]
    case = UrdfCase(5)
    found.append((case.text(), (case.joints[case.free[0]],), case.links[-1]))
    return [*found, *[(text, ("shoulder", "elbow"), "tool") for text in (ARM, MJCF)]]


def test_damaged_files_raise_our_errors_alone(sources) -> None:
    choice = random.Random(0)
    refused = 0
    for _ in range(MUTATIONS):
        text, joints, frame = choice.choice(sources)
        text = damaged(text, choice)
        try:
            pose = Kinematics(text, joints, frame).forward(np.full(len(joints), 0.3))
            assert np.isfinite(pose).all()
        except RoboVLMsError as error:
            assert len(str(error)) < 10_000
            refused += 1
    assert MUTATIONS / 4 < refused < MUTATIONS


def test_the_generator_writes_xml() -> None:
    """The random robots carry what they are to carry."""
    texts = [UrdfCase(seed).text() for seed in range(CASES)]
    assert any(t.startswith("\ufeff") for t in texts) and any("<mimic" in t for t in texts)
    with pytest.raises(ElementTree.ParseError, match="unbound prefix"):
        ElementTree.fromstring(texts[0][texts[0].index("<robot") :])
