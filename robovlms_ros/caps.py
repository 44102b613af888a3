"""Largest sizes of inputs. A larger input is refused with a message that names the cap."""

MAX_DESCRIPTION_BYTES = 16 * 2**20
"""Bytes of a robot description, each included file counted."""
MAX_DESCRIPTION_ELEMENTS = 200_000
"""XML elements of a robot description, those of included files counted."""
MAX_DESCRIPTION_DEPTH = 200
"""XML elements inside one another in a robot description."""
MAX_DESCRIPTION_INCLUDES = 200
"""Files that an MJCF includes, those that included files include counted."""
MAX_DESCRIPTION_NUMBER = 1e6
"""Largest magnitude of a length, an angle or an axis component in a robot description."""
