"""Forward and inverse kinematics of an arm on its own URDF or MJCF, by pinocchio.

Inverse kinematics solves a whole chunk of poses in order, each step warm-started from the one
before: damped least squares on the pose error, with joint limits as an active set and damping of
    the nearly singular directions alone
(Maciejewski and Klein, "Numerical filtering for the operation of robotic manipulators through
kinematically singular configurations", 1988), so that the well-conditioned directions still
converge quadratically.
"""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.description.model import (
    ArmModel,
    KinematicsError,
    build_model,
    check_joints,
    find_frame,
    import_pinocchio,
    load_tree,
    place_of,
)
from robovlms_ros.control.description.xml import DescriptionFault
from robovlms_ros.control.robot import IKSettings, RobotSpec
from robovlms_ros.core.rotations import pose_of
from robovlms_ros.core.types import Array


@dataclass(frozen=True)
class IKResult:
    """positions (N, J) rad; position_error (N,) m; rotation_error (N,) rad; reached (N,) bool."""

    positions: Array
    position_error: Array
    rotation_error: Array
    reached: NDArray[np.bool_]


class Kinematics:
    """One arm's kinematics, with the other joints of its description locked at their neutral
    position.

    description: the text of a URDF, or the path of a URDF or MJCF file.
    joints: the arm's joints; their order is the order of every joint vector here.
    eef_frame, base_frame: names of links or sites; base_frame None is the root of the description.
    lower, upper: (J,) position limits; None takes the description's.
    posture, posture_gain: (J,) configuration towards which a redundant arm moves in its null space,
        and the part of the way (0 to 1) it takes per step.

    Not thread-safe: one object per thread. Raises KinematicsError.
    """

    def __init__(
        self,
        description: str | Path,
        joints: Sequence[str],
        eef_frame: str,
        base_frame: str | None = None,
        lower: Array | None = None,
        upper: Array | None = None,
        posture: Array | None = None,
        posture_gain: float = 0.0,
        settings: IKSettings | None = None,
    ) -> None:
        self._pin = import_pinocchio()
        self._eigen_solver = importlib.import_module("eigenpy").SelfAdjointEigenSolver
        self.joints = tuple(joints)
        place = place_of(description)
        tree = load_tree(description)
        try:
            check_joints(tree, self.joints)
            eef = find_frame(tree, eef_frame)
            base = None if base_frame is None else find_frame(tree, base_frame)
            arm = build_model(self._pin, tree, self.joints, (eef, base or 0))
            self._use(arm, eef)
        except DescriptionFault as error:
            raise KinematicsError(f"{place}: {error}.") from error
        # pinocchio documents no set of exceptions.
        except Exception as error:
            raise KinematicsError(f"{place}: pinocchio cannot build it: {type(error).__name__}: {error}") from error
        base_joint, pose = (0, np.eye(4)) if base is None else arm.links[base]
        if base_joint != 0:
            raise KinematicsError(
                f"{place}: base_frame '{base_frame}' moves with the joints; name one below the first."
            )
        self._base_rotation = pose[:3, :3].copy()
        self._base_position = pose[:3, 3].copy()
        known = tree.joints()
        self.lower = np.array([known[j].lower for j in self.joints]) if lower is None else np.asarray(lower, float)
        self.upper = np.array([known[j].upper for j in self.joints]) if upper is None else np.asarray(upper, float)
        self._posture: Array | None = None if posture is None else np.asarray(posture, float)
        self._posture_gain = posture_gain
        self.settings = settings or IKSettings()
        self._weights = np.array([1.0, 1.0, 1.0, *[self.settings.rotation_weight] * 3])

    def _use(self, arm: ArmModel, eef: int) -> None:
        """Take a model over, with the tool's frame added."""
        joint, pose = arm.links[eef]
        placement = self._pin.SE3(pose[:3, :3], pose[:3, 3])
        self._eef = arm.model.addFrame(self._pin.Frame("tool", joint, placement, self._pin.FrameType.OP_FRAME))
        self._model = arm.model
        self._data = arm.model.createData()
        self._coupling = arm.coupling
        self._offset = arm.offset
        count = len(self.joints)
        self._identity = np.array_equal(arm.coupling, np.eye(count)) and not arm.offset.any()

    @classmethod
    def for_robot(cls, robot: RobotSpec, description: str | Path | None = None) -> "Kinematics":
        """The kinematics of a RobotSpec; `description` is what its topic delivered, where it names
        one.

        Raises KinematicsError, also when the description comes from a topic and none is given.
        """
        source = robot.description_path if description is None else description
        if source is None:
            raise KinematicsError(
                f"the description of {robot.name} comes from the topic '{robot.description.topic}', which has not "
                "delivered one. Start robot_state_publisher, or set description.file in the robot's YAML."
            )
        return cls(
            source,
            robot.joints,
            robot.eef_frame,
            robot.base_frame,
            robot.lower(),
            robot.upper(),
            np.array(robot.home),
            robot.posture_gain,
            robot.ik,
        )

    def forward(self, positions: Array) -> Array:
        """(4, 4) base_T_eef at joint positions (J,)."""
        self._pin.forwardKinematics(self._model, self._data, self._configuration(positions))
        placement = self._pin.updateFramePlacement(self._model, self._data, self._eef)
        rotation = self._base_rotation.T @ placement.rotation
        position = self._base_rotation.T @ (placement.translation - self._base_position)
        return pose_of(rotation, position)

    def tool_positions(self, positions: Array) -> Array:
        """(N, 3) m, where the tool frame's origin is at each of the joint positions (N, J)."""
        places = np.empty((len(positions), 3))
        for i, q in enumerate(positions):
            self._pin.forwardKinematics(self._model, self._data, self._configuration(q))
            places[i] = self._pin.updateFramePlacement(self._model, self._data, self._eef).translation
        return (places - self._base_position) @ self._base_rotation

    def jacobian(self, positions: Array) -> Array:
        """(6, J) Jacobian at joint positions (J,): linear then angular velocity of the tool frame,
        in base axes."""
        q = self._configuration(positions)
        frame = self._pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        jacobian = self._pin.computeFrameJacobian(self._model, self._data, q, self._eef, frame)
        jacobian = self._per_arm_joint(jacobian)
        return np.vstack([self._base_rotation.T @ jacobian[:3], self._base_rotation.T @ jacobian[3:]])

    def inverse(self, targets: Array, seed: Array) -> IKResult:
        """Joint positions that bring the tool frame to each of `targets` (N, 4, 4) base_T_eef,
        starting from seed (J,).

        A step that is not reached holds the closest configuration found, and the next step starts
        from it.
        """
        targets = np.asarray(targets, dtype=np.float64)
        q = np.clip(np.asarray(seed, dtype=np.float64), self.lower, self.upper)
        count = targets.shape[0]
        positions = np.empty((count, len(self.joints)))
        errors = np.empty((count, 2))
        for step in range(count):
            q, errors[step] = self._solve(targets[step], q)
            positions[step] = q
        s = self.settings
        reached = (errors[:, 0] <= s.position_tolerance) & (errors[:, 1] <= s.rotation_tolerance)
        return IKResult(positions, errors[:, 0], errors[:, 1], reached)

    def _solve(self, target: Array, q: Array) -> tuple[Array, tuple[float, float]]:
        """The configuration nearest to one target (4, 4), and its position and rotation error."""
        s = self.settings
        rotation = self._base_rotation
        goal = self._pin.SE3(rotation @ target[:3, :3], rotation @ target[:3, 3] + self._base_position)
        weights = self._weights[:, None]
        if self._posture is not None and self._posture_gain > 0.0:
            jacobian, error = self._linearise(q, goal)
            q = self._advance(q, jacobian * weights, error * self._weights, self._posture)
        best = q
        best_errors = (np.inf, np.inf)
        best_cost = np.inf
        stalled = 0
        for _ in range(s.max_iterations):
            jacobian, error = self._linearise(q, goal)
            errors = _norm(error[:3]), _norm(error[3:])
            error = error * self._weights
            cost = _norm(error)
            stalled = 0 if cost < 0.95 * best_cost else stalled + 1
            if cost < best_cost:
                best = q
                best_errors = errors
                best_cost = cost
            close = max(errors[0] / s.position_tolerance, errors[1] / s.rotation_tolerance) <= s.converged
            if close or stalled > s.patience:
                break
            q = self._advance(q, jacobian * weights, error)
        return best, best_errors

    def _linearise(self, q: Array, goal: Any) -> tuple[Array, Array]:
        """The Jacobian (6, J) at q and the error (6,) to the goal, both in the tool's axes."""
        self._pin.computeJointJacobians(self._model, self._data, self._configuration(q))
        jacobian = self._pin.getFrameJacobian(self._model, self._data, self._eef, self._pin.ReferenceFrame.LOCAL)
        rest = self._pin.updateFramePlacement(self._model, self._data, self._eef).actInv(goal)
        error = np.empty(6)
        error[:3] = rest.translation
        error[3:] = self._pin.log3(rest.rotation)
        return self._per_arm_joint(jacobian), error

    def _advance(self, q: Array, jacobian: Array, error: Array, posture: Array | None = None) -> Array:
        """One iteration: q moved against the error within the limits; joints that meet a limit
        leave the solution."""
        free = None
        for _ in range(len(q)):
            active = jacobian if free is None else jacobian * free
            step = self._step(active, error)
            if posture is not None:
                step = step + self._null_step(active, q, posture)
            largest = float(np.abs(step).max())
            if largest > self.settings.max_step:
                step = step * (self.settings.max_step / largest)
            moved = q + step
            inside = np.minimum(np.maximum(moved, self.lower), self.upper)
            # A joint that cannot move any further is taken out, and the others carry its part.
            blocked = (inside != moved) & (inside == q)
            if not blocked.any():
                return inside
            free = np.where(blocked, 0.0, 1.0 if free is None else free)
        return q

    def _null_step(self, jacobian: Array, q: Array, posture: Array) -> Array:
        """A part of the way to the posture, less what would move the tool."""
        wish = self._posture_gain * (posture - q)
        wish = wish * np.any(jacobian != 0.0, axis=0)
        return wish - np.linalg.lstsq(jacobian, jacobian @ wish, rcond=1e-3)[0]

    def _step(self, jacobian: Array, error: Array) -> Array:
        """Damped least squares (J,), damping only the directions of small singular value."""
        s = self.settings
        # eigenpy comes with pinocchio; NumPy's eigh takes three times as long on a 6x6 matrix.
        solver = self._eigen_solver(jacobian @ jacobian.T)
        # (6,), (6, 6)
        squares = np.maximum(solver.eigenvalues(), 0.0)
        vectors = solver.eigenvectors()
        near = np.maximum(1.0 - squares / s.singular_value**2, 1e-9)
        return jacobian.T @ (vectors @ ((vectors.T @ error) / (squares + s.damping**2 * near)))

    def _per_arm_joint(self, jacobian: Array) -> Array:
        """(6, J) of pinocchio's (6, V); of a single joint pinocchio gives (6,)."""
        return jacobian.reshape(6, -1) if self._identity else jacobian.reshape(6, -1) @ self._coupling

    def _configuration(self, positions: Array) -> Array:
        if self._identity:
            return np.ascontiguousarray(positions, dtype=np.float64)
        return self._coupling @ np.asarray(positions, dtype=np.float64) + self._offset


def _norm(vector: Array) -> float:
    return math.sqrt(float(vector @ vector))
