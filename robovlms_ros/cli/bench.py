"""`robovlms bench NAME`: one module per benchmark; without a name, what a step of a policy costs."""

DEFAULT = "policy"
COMMANDS = {
    "policy": ("bench_policy", "what a step of a policy costs on this machine (the default)"),
    "plot": ("bench_plot", "curves of cost from what `bench policy --json` wrote"),
    "stream": ("bench_stream", "how smoothly each streaming strategy moves an arm under latency"),
    "node": ("bench_node", "what the ROS node adds to a step"),
    "faults": ("bench_faults", "faults through the real graph at working speed, against the arm's limits"),
    "ik": ("bench_ik", "inverse kinematics of a whole chunk"),
    "collision": ("bench_collision", "the gate's collision check against the simulator's contacts"),
    "eval": ("bench_eval", "bag evaluation: frames in blocks against frame by frame"),
}
