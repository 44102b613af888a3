from typing import Any
from pathlib import Path


def check(case, path):
    raise NotImplementedError


def check_checkpoint(case, path):
    raise NotImplementedError
