"""Rotations in NumPy: vectors, Euler angles and matrices, batched over leading axes. Angles are
radians.

A rotation vector is axis times angle, 0 <= angle <= pi. `euler_xyz_extrinsic` is R = Rz Ry Rx
(roll, pitch, yaw about fixed axes, REP-103), `euler_xyz_intrinsic` is R = Rx Ry Rz. Near a pitch of
+-pi/2 the last angle is set to 0.

scipy's Rotation stays out: the robot does not need scipy otherwise, and of a chunk's conversion
(10 rotations, scipy 1.17) it makes vectors and Euler angles to matrices 6 to 11 times as fast (227
to 21 us), matrices to Euler angles 10 times as slow (20 to 196 us). It raises LinAlgError for NaN,
which the safety gate refuses with a reason, and Python 3.10's releases take no (..., 3).
"""

import numpy as np
from numpy.typing import ArrayLike

from robovlms_ros.core.types import Array, Rotation


def skew(v: ArrayLike) -> Array:
    """(..., 3) to the (..., 3, 3) matrix of the cross product v x."""
    x, y, z = np.moveaxis(np.asarray(v, dtype=np.float64), -1, 0)
    zero = np.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_from_vector(vector: ArrayLike) -> Array:
    """Rotation vectors (..., 3) to matrices (..., 3, 3) by Rodrigues' formula."""
    vector = np.asarray(vector, dtype=np.float64)
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    k = skew(vector)
    # np.sinc(x) is sin(pi x) / (pi x): both factors stay exact as the angle goes to 0.
    return np.eye(3) + np.sinc(angle / np.pi) * k + 0.5 * np.sinc(angle / (2 * np.pi)) ** 2 * (k @ k)


def vector_from_matrix(matrix: ArrayLike) -> Array:
    """Matrices (..., 3, 3) to rotation vectors (..., 3). At an angle of pi the sign of the axis is
    a choice."""
    quaternion = quaternion_from_matrix(matrix)
    w = quaternion[..., 0]
    xyz = quaternion[..., 1:]
    sine = np.linalg.norm(xyz, axis=-1)
    angle = 2.0 * np.arctan2(sine, w)
    scale = np.where(sine < 1e-12, 2.0, angle / np.maximum(sine, 1e-12))
    return xyz * scale[..., None]


def quaternion_from_matrix(matrix: ArrayLike) -> Array:
    """Matrices (..., 3, 3) to unit quaternions (..., 4) as (w, x, y, z) with w >= 0."""
    m = np.asarray(matrix, dtype=np.float64)
    xx = m[..., 0, 0]
    yy = m[..., 1, 1]
    zz = m[..., 2, 2]
    xw = m[..., 2, 1] - m[..., 1, 2]
    yw = m[..., 0, 2] - m[..., 2, 0]
    zw = m[..., 1, 0] - m[..., 0, 1]
    xy = m[..., 0, 1] + m[..., 1, 0]
    xz = m[..., 0, 2] + m[..., 2, 0]
    yz = m[..., 1, 2] + m[..., 2, 1]
    # Row i is 4 q_i q: the row with the largest q_i is the best conditioned.
    rows = np.stack(
        [
            np.stack([1 + xx + yy + zz, xw, yw, zw], axis=-1),
            np.stack([xw, 1 + xx - yy - zz, xy, xz], axis=-1),
            np.stack([yw, xy, 1 - xx + yy - zz, yz], axis=-1),
            np.stack([zw, xz, yz, 1 - xx - yy + zz], axis=-1),
        ],
        axis=-2,
    )
    best = np.argmax(np.diagonal(rows, axis1=-2, axis2=-1), axis=-1)
    quaternion = np.take_along_axis(rows, best[..., None, None], axis=-2)[..., 0, :]
    quaternion = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)
    return np.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def matrix_from_quaternion(quaternion: ArrayLike) -> Array:
    """Quaternions (..., 4) as (w, x, y, z), of any norm but 0, to matrices (..., 3, 3)."""
    q = np.asarray(quaternion, dtype=np.float64)
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    k = skew(q[..., 1:])
    return np.eye(3) + 2.0 * (q[..., 0, None, None] * k + k @ k)


def matrix_from_euler(angles: ArrayLike, intrinsic: bool = False) -> Array:
    """Angles (..., 3) about x, y, z to matrices (..., 3, 3): Rz Ry Rx, or Rx Ry Rz when
    intrinsic."""
    angles = np.asarray(angles, dtype=np.float64)
    x, y, z = (matrix_from_vector(angles * np.eye(3)[axis]) for axis in range(3))
    return x @ y @ z if intrinsic else z @ y @ x


def euler_from_matrix(matrix: ArrayLike, intrinsic: bool = False) -> Array:
    """The mirror of `matrix_from_euler`; the middle angle lies in [-pi/2, pi/2]."""
    m = np.asarray(matrix, dtype=np.float64)
    if intrinsic:
        # The transpose of Rx(a) Ry(b) Rz(c) is Rz(-c) Ry(-b) Rx(-a): the extrinsic form of the
        # negated angles.
        m = np.swapaxes(m, -1, -2)
    cosine = np.hypot(m[..., 0, 0], m[..., 1, 0])
    locked = cosine < 1e-9
    roll = np.where(locked, np.arctan2(-m[..., 1, 2], m[..., 1, 1]), np.arctan2(m[..., 2, 1], m[..., 2, 2]))
    pitch = np.arctan2(-m[..., 2, 0], cosine)
    yaw = np.where(locked, 0.0, np.arctan2(m[..., 1, 0], m[..., 0, 0]))
    angles = np.stack([roll, pitch, yaw], axis=-1)
    return -angles if intrinsic else angles


def matrix_from(values: ArrayLike, rotation: Rotation) -> Array:
    """Three numbers (..., 3) in the parametrisation of an ActionSpec to matrices (..., 3, 3)."""
    if rotation == "rotation_vector":
        return matrix_from_vector(values)
    return matrix_from_euler(values, intrinsic=rotation == "euler_xyz_intrinsic")


def values_from(matrix: ArrayLike, rotation: Rotation) -> Array:
    """The mirror of `matrix_from`."""
    if rotation == "rotation_vector":
        return vector_from_matrix(matrix)
    return euler_from_matrix(matrix, intrinsic=rotation == "euler_xyz_intrinsic")


def pose_of(rotation: Array | None = None, position: Array | None = None) -> Array:
    """(4, 4) pose of a rotation matrix (3, 3) and a position (3,); None is none."""
    pose = np.eye(4)
    if rotation is not None:
        pose[:3, :3] = rotation
    if position is not None:
        pose[:3, 3] = position
    return pose
