"""Point the ROS wheels' exported CMake targets at this machine's Python and NumPy headers.

The wheels name the include folders of the machine that built them, and CMake refuses include folders that do not
exist. Prints how many files changed; a second run changes none.
"""

import re
import sys
import sysconfig
from pathlib import Path

import numpy

INCLUDE = re.compile(r'(INTERFACE_INCLUDE_DIRECTORIES )"[^"]*numpy/[^"]*"')


def main() -> None:
    include = f'"{sysconfig.get_path("include")};{numpy.get_include()}"'
    changed = 0
    for path in Path(sys.prefix, "share").glob("*/cmake/export_*__rosidl_generator_pyExport.cmake"):
        text = path.read_text(encoding="utf-8")
        rewritten = INCLUDE.sub(lambda match: match[1] + include, text)
        if rewritten != text:
            path.write_text(rewritten, encoding="utf-8")
            changed += 1
    print(f"{changed} files changed")


main()
