"""`robovlms bench NAME`: one module per benchmark."""

COMMANDS = {
    "stream": ("bench_stream", "how smoothly each streaming strategy moves an arm under latency"),
    "node": ("bench_node", "what the ROS node adds to a step"),
    "ik": ("bench_ik", "inverse kinematics of a whole chunk"),
    "eval": ("bench_eval", "bag evaluation: frames in blocks against frame by frame"),
}
