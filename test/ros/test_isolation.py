"""The environment of a simulated arm's graph: this machine only, a drawn domain or a given one."""

import pytest

from robovlms_ros.core.schema import ConfigError
from robovlms_ros.ros.processes import isolated_environment


def test_a_domain_is_drawn_or_taken():
    domains = {isolated_environment()["ROS_DOMAIN_ID"] for _ in range(50)}
    assert len(domains) > 10 and all(1 <= int(domain) <= 100 for domain in domains)
    assert isolated_environment("7") == {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_DOMAIN_ID": "7"}


@pytest.mark.parametrize("domain", ["233", "-1", "two", "1.5", " ", "\u0663"])
def test_another_text_is_refused(domain):
    with pytest.raises(ConfigError, match="must be a whole number from 0 to 232"):
        isolated_environment(domain)
