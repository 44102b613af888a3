"""Largest sizes of inputs. A larger input is refused with a message that names the cap."""

MAX_DESCRIPTION_BYTES = 16 * 2**20
"""Bytes of a robot description, each included file counted."""
MAX_DESCRIPTION_ELEMENTS = 200_000
"""XML elements of a robot description, those of included files counted."""
MAX_DESCRIPTION_DEPTH = 200
"""XML elements inside one another in a robot description."""
MAX_DESCRIPTION_INCLUDES = 200
"""Files that an MJCF includes, those that included files include counted."""
MAX_MESH_BYTES = 256 * 2**20
"""Bytes of a collision mesh."""
MAX_DESCRIPTION_NUMBER = 1e6
"""Largest magnitude of a length, an angle or an axis component in a robot description."""

MAX_CONFIG_BYTES = 4 * 2**20
"""Bytes of a YAML or JSON file of configuration."""
MAX_CONFIG_DEPTH = 60
"""Levels of nesting in a YAML or JSON file of configuration."""
MAX_CONFIG_VALUES = 200_000
"""Values of a YAML file with its aliases expanded."""
MAX_CONFIG_BASES = 16
"""Files that a policy configuration builds on, one on the other, by `base`."""
MAX_TOKENIZER_BYTES = 256 * 2**20
"""Bytes of each JSON file of a tokenizer."""
MAX_LAYERS = 1_000
"""Layers, heads and depths that an architecture may name."""
MAX_WIDTH = 4_000_000
"""Widths and vocabulary sizes that an architecture may name."""
MAX_IMAGE_PIXELS = 64 * 2**20
"""Pixels of a compressed image, an image in a table or a video frame, by its header, before it is
decoded."""
MAX_JSON_BYTES = 64 * 2**20
"""Bytes of a data set's JSON description."""
MAX_TABLE_BYTES = 64 * 2**30
"""Bytes of a Parquet file."""
MAX_TABLE_GROUP_BYTES = 8 * 2**30
"""Uncompressed bytes of one row group of a Parquet file, by its footer."""
MAX_TABLE_ROWS = 100_000_000
"""Rows of a Parquet file, by its footer."""
MAX_EPISODES = 1_000_000
"""Episodes of a data set."""
MAX_EPISODE_STEPS = 1_000_000
"""Steps of one episode."""
MAX_FEATURE_WIDTH = 10_000
"""Numbers of one feature in one step."""
MAX_VIDEO_FRAMES_SOUGHT = 20_000
"""Video frames decoded on the way to a frame that was asked for."""
MAX_ARRAY_BYTES = 2**30
"""Bytes of one array in a NumPy file, by its header, and of all its files together uncompressed."""
MAX_BAG_BYTES = 2**43
"""Bytes of one file of a bag."""
MAX_METADATA_BYTES = 4 * 2**20
"""Bytes of a bag's metadata.yaml."""
MAX_CHUNK_BYTES = 512 * 2**20
"""Bytes of an MCAP record, and of an MCAP chunk uncompressed."""
MAX_MESSAGE_BYTES = 256 * 2**20
"""Bytes of one recorded message, uncompressed."""
MAX_DECOMPRESSED_RATIO = 1000
"""Bytes of a decompressed bag file for one byte of the compressed file, beyond
MAX_DECOMPRESSED_BYTES."""
MAX_DECOMPRESSED_BYTES = 256 * 2**20
"""Bytes of a decompressed bag file, whatever its compressed size."""
MAX_SCHEMA_BYTES = 2**20
"""Bytes of a message definition that is embedded in a bag."""
MAX_PICKLE_ITEMS = 20_000_000
"""Values and opcodes of a NumPy file of objects."""
