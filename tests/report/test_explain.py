"""What explain says: each sentence against a plan that is known."""

from dataclasses import replace

import pytest

import plans
from optimizer.report import UnknownSubject, explain


def told(subject: str | None, plan=None) -> str:
    """The sentences, a line each."""
    made = plan or plans.rebalanced_plan()
    problem = plans.small_problem(plans.small_current())
    return "\n".join(explain(made, problem, plans.DROPPED, subject))


def test_why_this_slice_and_what_it_costs_beside_others():
    text = told("support-chat")
    assert text.startswith("support-chat (acme) runs 3 replicas on h100-01/0,1 and pays")
    assert "Not the smaller h100-80gb-sxm 2g.20gb fp8: needs 21.3 GiB, the slice has 20.0." in text
    assert "h100-80gb-sxm 3g.40gb fp8 vllm costs 0.38 USD/h per req/s; not used" in text
    assert "h100-80gb-sxm 4g.40gb bf16 vllm at 0.35 USD/h per req/s (-8 %)" in text
    assert "TPOT at p95: predicted 31 ms (±8 %) of 50 ms, 38 % to spare." in text
    assert "One more replica is needed above 9.9 req/s." in text


def test_what_a_loss_leaves_counts_for_who_must_outlive_it():
    def asked(kind):
        problem = plans.small_problem(plans.small_current())
        chat = replace(problem.deployments[0], survive=kind, avoid=("vision",))
        return replace(problem, deployments=(chat, *problem.deployments[1:]))

    def says(kind):
        return explain(plans.rebalanced_plan(), asked(kind), plans.DROPPED, "support-chat")

    assert "One more replica is needed above 9.9 req/s." in says(None)
    assert "Rules on it: never on a GPU with vision." in says(None)
    text = says("node")  # all three run on h100-01
    assert (
        "Rules on it: carries its demand without any one node, never on a GPU with vision." in text
    )
    assert "One more replica is needed above 0 req/s, which is left without node h100-01." in text
    assert "which is left without rack r1." in " ".join(says("rack"))
    assert len(set(text)) == len(text)


def test_why_it_moves_and_why_it_stays():
    assert "It is to move from h200-01/7 3g.70gb@0" in told("support-chat/1")
    assert "It stays where it is: moving it would load 68.0 GiB of weights" in told("llama-70b/0")
    plan = plans.rebalanced_plan()
    left = replace(plan, left=("support-chat/0",))
    assert "no safe order of steps" in told("support-chat/0", left)


def test_what_a_gpu_holds_and_what_fits_beside():
    text = told("h100-01/1")
    assert text.startswith("h100-01/1: h100-80gb-sxm, rack r1, 2.50 USD/h when used.")
    assert "support-chat/2 (acme) holds 3g.40gb@4." in text
    assert "Still fits, one at a time: 1g.10gb at 1,3" in text
    assert "cordoned" in told("h200-01/7")


def test_the_whole_plan_says_what_is_short():
    text = told(None)
    assert "Unmet demand, priority 0: 1.4 deployments, and no plan can do better." in text
    assert "code-assist gets less than asked" in text


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("suport-chat", "did you mean support-chat"),
        ("H100-01/1", "did you mean h100-01/1"),
        ("acme", "a tenant; its deployments: support-chat, reranker"),
        ("h100-02", "a node; its GPUs: h100-02/0, h100-02/1, h100-02/2, h100-02/3"),
        ("r1", "a rack; its GPUs: h100-01/0"),
        ("h100-80gb-sxm", "a product; the plan's GPUs of it: h100-01/0"),
        ("zzz", 'GPU "zzz" in this plan'),
    ],
)
def test_unknown_subjects_get_near_names(asked, hint):
    with pytest.raises(UnknownSubject) as refused:
        told(asked)
    assert hint in str(refused.value)
