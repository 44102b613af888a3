"""A ROS graph of its own for simulated arms: their commands must never reach a real arm."""

import random

from robovlms_ros.core.schema import ConfigError

LARGEST_DOMAIN = 232
"""The largest ROS_DOMAIN_ID whose ports fit into 16 bits (RTPS 2.2, 9.6.1.1)."""


def isolated_environment(domain: str = "") -> dict[str, str]:
    """Environment variables that keep a graph on this machine and on a domain.

    domain: 0 to LARGEST_DOMAIN; empty for a random one from 1 to 100. Raises ConfigError for
        others.
    """
    if not domain:
        domain = str(random.SystemRandom().randint(1, 100))
    if not domain.isascii() or not domain.isdigit() or int(domain) > LARGEST_DOMAIN:
        raise ConfigError(
            f"domain_id = {domain[:100]!r}: must be a whole number from 0 to {LARGEST_DOMAIN}, or empty for a "
            "random one."
        )
    return {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_DOMAIN_ID": domain}
