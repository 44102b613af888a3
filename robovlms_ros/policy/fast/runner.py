"""Which path a session takes."""

from robovlms_ros.policy.fast.plan import FastPathOptions
from robovlms_ros.policy.paths import PlainPath
from robovlms_ros.policy.policy import VLAPolicy


def path_for(policy: VLAPolicy, options: FastPathOptions | None) -> PlainPath:
    """The stages that a session of `policy` runs with `options`."""
    if options is None or not options.enabled:
        return PlainPath(policy)
    return PlainPath(policy, "no part of the fast path is at hand")
