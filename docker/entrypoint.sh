#!/usr/bin/env bash
# Enters the virtual environment and the workspace, then runs the command.
set -e
. /opt/venv/bin/activate
. /ws/install/setup.bash
exec "$@"
