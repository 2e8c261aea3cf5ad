"""When two placements differ: what one side leaves unsaid is no difference."""

import pytest

from builders import place, replica
from optimizer.domain.config import ReplicaConfig
from optimizer.report import diff

PAIR = ReplicaConfig(tensor_parallel=2)
FULL = ReplicaConfig(engine="vllm", precision="fp8", tensor_parallel=2, max_num_seqs=64)


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [
        (PAIR, ReplicaConfig(), []),
        (PAIR, FULL, []),
        (ReplicaConfig(engine="vllm", tensor_parallel=2), FULL, []),
        (ReplicaConfig(engine="sglang", tensor_parallel=2), FULL, ["reconfigured"]),
        (ReplicaConfig(engine="vllm", tensor_parallel=1), FULL, ["reconfigured"]),
    ],
    ids=["no model", "nothing said", "some said", "another engine", "another size"],
)
def test_only_what_both_say_is_reconfigured(
    before: ReplicaConfig, after: ReplicaConfig, kinds: list[str]
) -> None:
    a = place(replica("chat/0", "n/0", "n/1", config=before))
    b = place(replica("chat/0", "n/0", "n/1", config=after))
    assert [change.kind for change in diff(a, b).changes] == kinds
    assert [change.kind for change in diff(b, a).changes] == kinds
