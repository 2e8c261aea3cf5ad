"""What runs now on a cluster, asked for the importer of Ray."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimizer.exchange import File


RAY = "ray"


def asked_of_ray(address: str | None) -> "File":
    """The answer of the cluster at that address, or of what this user launched, as JSON."""
    from optimizer.documents import state_document
    from optimizer.domain.placement import Placement
    from optimizer.exchange import File
    from optimizer.launch import live_state

    live = live_state(address=address)
    others = state_document(Placement(live.foreign), None)["replicas"]
    by = live.by or {}
    said = {
        **state_document(live.placement, live.fleet),
        "fleet": live.fleet,
        "foreign": [{**one, "by": by[one["deployment"]]} for one in others],
        "doubts": list(live.doubts),
    }
    return File(
        f"Ray at {address}" if address else "the Ray of what was launched", json.dumps(said)
    )
