# Sourced by the scripts beside it. Decides which ROS is used and where things lie, and enters that environment.
#
# ROS_DISTRO set (a ROS installation is sourced): that ROS. Otherwise ROS from Python wheels: Jazzy, or what
# ROS_DISTRO_WHEELS names (jazzy, kilted).

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

if [ -n "${ROS_DISTRO:-}" ]; then
  KIND=system
  DISTRO="$ROS_DISTRO"
  VENV="$ROOT/.venv-ros-$DISTRO"
  BUILD="$ROOT/build/ros-$DISTRO"
  INSTALL="$ROOT/install/ros-$DISTRO"
else
  KIND=wheels
  DISTRO="${ROS_DISTRO_WHEELS:-jazzy}"
  VENV="$ROOT/.venv-$DISTRO"
  if [ "$DISTRO" = jazzy ]; then VENV="$ROOT/.venv"; fi
  BUILD="$ROOT/build/$DISTRO"
  INSTALL="$ROOT/install/$DISTRO"
fi

case "$DISTRO" in
  jazzy | kilted) ;;
  *)
    echo "ROS distribution '$DISTRO' is not supported. Allowed: jazzy, kilted." >&2
    exit 2
    ;;
esac

# Enters the environment: the virtual environment, ROS, the built messages, and this source tree before its built copy.
# Entering twice changes nothing, so that a script may call another one.
enter_environment() {
  local label="$ROOT $KIND $DISTRO"
  [ "${ROBOVLMS_ENVIRONMENT:-}" = "$label" ] && return
  export ROBOVLMS_ENVIRONMENT="$label"
  export VIRTUAL_ENV="$VENV"
  export PATH="$VENV/bin:$PATH"
  unset PYTHONHOME
  if [ "$KIND" = wheels ]; then enter_wheels; fi
  if [ -f "$INSTALL/setup.bash" ]; then
    set +u
    # shellcheck disable=SC1091
    . "$INSTALL/setup.bash"
    set -u
  fi
  export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
  # OSMesa draws without a GPU and without a display.
  export MUJOCO_GL="${MUJOCO_GL:-osmesa}"
}

# With the wheels, the virtual environment is an ament prefix. Their start-up hook would execute Python a second time to
# set the library path; with the path and the hook's own guard set, it has nothing to do.
enter_wheels() {
  local libraries="$VENV/lib" folder
  for folder in "$VENV"/lib/python3.*/site-packages/ros_*.libs; do
    [ -d "$folder" ] && libraries="$libraries:$folder"
  done
  export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
  export AMENT_PREFIX_PATH="$VENV"
  export CMAKE_PREFIX_PATH="$VENV"
  # Not set by the wheels; ROS's own tools ask for it.
  export ROS_VERSION=2 ROS_PYTHON_VERSION=3
  unset PYTHONPATH COLCON_CURRENT_PREFIX
}
