"""Pace: how long each act takes, and how much may be done at once."""

from dataclasses import dataclass

LOAD_MIB_PER_S = 2048  # of one load from storage; assumed, not measured
START_S = 30  # process, CUDA context and graph capture beside the loading; assumed
SECONDS = {
    "create_instance": 2,
    "destroy_instance": 2,
    "set_mig_mode": 10,
    "shift_traffic": 5,
    "drain": 30,
    "stop": 5,
}


# A new copy takes traffic and the old one goes: what follows every load.
HAND_OVER_S = SECONDS["shift_traffic"] + SECONDS["drain"] + SECONDS["stop"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How much may be done at once: loads on one node and in the fleet; and for how long.

    ``whole_gpus``: the tool at hand cuts a GPU anew only as a whole, once nobody is on it, as
    mig-parted and the MIG manager do; else instance by instance, as NVML can.
    """

    loads_per_node: int = 2
    loads_at_once: int | None = None
    window_s: int | None = None
    whole_gpus: bool = False


DEFAULT_PACE = Pace()
