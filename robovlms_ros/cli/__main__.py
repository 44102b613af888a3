"""`python -m robovlms_ros.cli`, for a checkout that is not installed."""

import sys

from robovlms_ros.cli.main import main

sys.exit(main())
