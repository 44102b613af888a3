"""robovlms_ros: RoboVLMs-style vision-language-action policies on real arms, over ROS 2.

Nothing may depend on more than this docstring and `__path__`: after a colcon build this package is
merged with the generated message package of the same name.
"""

__path__ = __import__("pkgutil").extend_path(__path__, __name__)
