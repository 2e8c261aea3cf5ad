"""How long one forward step of a replica takes.

    t_lin  = ((W/BW)^p + (2 A T/F)^p)^(1/p)     weights against bandwidth, flops against peak
    t_attn = KV read against bandwidth;  t_comm = two all-reduces a layer, and one hand-over a stage
    t_host = launches
    step   = t_lin + t_attn + t_comm + t_host

Constants are the engine card's, fitted on published measurements. Seconds throughout.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from optimizer.domain.engine import Correction, Efficiency, EngineCard, HostRule, Rates
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel
from optimizer.domain.units import ceil_div
from optimizer.sizing.compatibility import Runs
from optimizer.sizing.kvcache import layer_kinds
from optimizer.sizing.precision import KV_BYTES, scheme
from optimizer.sizing.weights import Parameters, moe_layers, parameters, position_bytes, weights

PCIE_GBS = {3: 15.75, 4: 31.5, 5: 63.0, 6: 126.0}  # 16 lanes, one direction (PCI-SIG)
HAND_OVER_US = 50.0  # assumed: a message between hosts over Ethernet; InfiniBand takes a few
_TILE = 128


@dataclass(frozen=True, slots=True)
class Device:
    """The part of a GPU that a replica runs on, and the link between its GPUs."""

    gpu: Gpu
    bandwidth_gbs: float
    compute: float = 1.0  # part of the GPU's SMs
    link_gbs: float = 0.0  # one direction, between the GPUs of a tensor-parallel group
    nvlink: bool = True
    between_gbs: float = PCIE_GBS[4]  # one direction, between the stages of a pipeline


@dataclass(frozen=True, slots=True)
class StepModel:
    """Seconds of one forward step on one GPU, precomputed per model, precision and device."""

    memory_dense_s: float  # weights read by every step
    memory_experts_s: float  # all experts
    expert_share: float  # k/E; 0 without experts
    token_flop_s: float  # products of one token, head included
    prompt_flop_s: float  # the same without the head
    kv_s: tuple[tuple[float, float], ...]  # (width in tokens, seconds per token of context)
    state_s: float  # per sequence
    attention_s: float  # prompt attention: per token and token of context, over full layers
    window_attention_s: tuple[tuple[float, float], ...]
    comm_base_s: float
    comm_token_s: float
    host_s: float
    sequence_s: float
    power: float
    stages: int = 1

    def corrected(self, by: Correction) -> "StepModel":
        """The same step as it was measured: decoding by one factor, prompts by another."""
        return replace(
            self,
            memory_dense_s=self.memory_dense_s * by.step,
            memory_experts_s=self.memory_experts_s * by.step,
            token_flop_s=self.token_flop_s * by.step,
            prompt_flop_s=self.prompt_flop_s * by.prompt,
            kv_s=tuple((width, s * by.step) for width, s in self.kv_s),
            state_s=self.state_s * by.step,
            attention_s=self.attention_s * by.prompt,
            window_attention_s=tuple((w, s * by.prompt) for w, s in self.window_attention_s),
            comm_base_s=self.comm_base_s * by.step,
            comm_token_s=self.comm_token_s * by.step,
            host_s=self.host_s * by.step,
            sequence_s=self.sequence_s * by.step,
        )

    def products(self, decoding: float, prompt: float = 0.0) -> float:
        """Matrix products of a step: tokens of decoding sequences, and of prompts without a head.

        Experts that no token meets are not read: E (1 - (1 - k/E)^T) are.
        """
        memory = self.memory_dense_s
        if self.expert_share:
            memory += self.memory_experts_s * (1 - (1 - self.expert_share) ** (decoding + prompt))
        p = self.power
        compute = self.token_flop_s * decoding + self.prompt_flop_s * prompt
        return float((memory**p + compute**p) ** (1 / p))

    def sequence(self, context: float) -> float:
        """What each sequence of that context adds to a step beside its matrix products."""
        kv = 0.0
        for width, seconds in self.kv_s:
            kv += seconds * (context if context < width else width)
        return kv + self.state_s + self.comm_token_s + self.sequence_s

    def decode(self, batch: float, sequence: float) -> float:
        """A step in which ``batch`` sequences each get a token; ``sequence``: of their context."""
        share = max(1.0, batch / self.stages)
        step = self.products(share) + share * sequence + self.comm_base_s + self.host_s
        return step * self.stages

    def decode_and_prompt(
        self, batch: float, sequence: float, new: float, chunk: float
    ) -> tuple[float, float]:
        """A decoding step, and what the products of a prompt add to the steps that it shares."""
        share = max(1.0, batch / self.stages)
        part, alone = min(new, chunk), self.products(share)
        step = alone + share * sequence + self.comm_base_s + self.host_s
        return step * self.stages, (self.products(share, part) - alone) * new / part

    def elasticity(self, batch: float, sequence: float, step: float) -> float:
        """How much longer a decoding step is, in percent, for one percent more sequences."""
        share = max(1.0, batch / self.stages)
        slope = self.token_flop_s + sequence
        if self.expert_share:
            unmet = (1 - self.expert_share) ** share
            slope += self.memory_experts_s * unmet * -math.log1p(-self.expert_share)
        return slope * batch / step

    def attention(self, tokens: float, cached: float = 0.0) -> float:
        """What a prompt takes beside its products, its first part cached: attention, exchange."""
        new = max(1.0, tokens - cached)
        context = cached + new / 2
        pairs = new * context * self.attention_s
        pairs += sum(new * min(context, w) * s for w, s in self.window_attention_s)
        return pairs + new * self.comm_token_s

    def prefill_batch(self, tokens: float, length: float) -> float:
        """A step of nothing but prompts of that length, as embedding models run."""
        prompts = tokens / length
        attention = prompts * self.attention(length)
        fixed = self.comm_base_s + self.host_s + self.sequence_s * prompts
        return self.products(0.0, tokens) + attention + fixed


def peak_tflops(gpu: Gpu, gemm: str) -> float | None:
    """Dense peak of a product's kind; 16-bit kinds stand in for one another; None: unknown."""
    peak = gpu.dense_tflops.get(gemm)
    if peak is None and gemm in ("bf16", "fp16"):
        peak = gpu.dense_tflops.get("fp16") or gpu.dense_tflops.get("bf16")
    return peak


def step_model(
    model: ServedModel,
    card: EngineCard,
    version: str,
    device: Device,
    how: Runs,
    precision: str,
    kv_precision: str = "bf16",
    tp: int = 1,
    pp: int = 1,
) -> StepModel | None:
    """The step of that replica, or None where the datasheet has no peak for its products."""
    peak, attention_peak = peak_tflops(device.gpu, how.gemm), peak_tflops(device.gpu, "bf16")
    reached = _reached(card, device.gpu)
    if peak is None or attention_peak is None or reached is None:
        return None
    rates = card.rates
    flops = peak * 1e12 * device.compute * reached.compute * how.compute_factor
    if how.gemm == "fp4":
        flops *= rates.fp4_gemm
    attention_flops = attention_peak * 1e12 * device.compute * reached.compute
    attention_flops *= rates.prompt_attention * how.attention_factor
    bandwidth = device.bandwidth_gbs * 1e9 * reached.bandwidth
    kv_bandwidth = bandwidth * rates.kv_bandwidth
    work = _work(model, card, version, precision, kv_precision, tp, pp)
    moe_s = 2 * work.expert_active / (flops * rates.moe_gemm)
    comm_base, comm_token = _communication(model, device, rates, tp, pp)
    found = StepModel(
        memory_dense_s=work.dense_bytes / bandwidth,
        memory_experts_s=work.expert_bytes / bandwidth,
        expert_share=work.expert_share,
        token_flop_s=2 * (work.active + work.head) / flops + moe_s,
        prompt_flop_s=2 * work.active / flops + moe_s,
        kv_s=tuple((width, size / kv_bandwidth) for width, size in work.kv_bytes),
        state_s=sum(size / kv_bandwidth for size in work.state_bytes),
        attention_s=sum(pair / attention_flops for pair in work.full_pairs),
        window_attention_s=tuple((w, pair / attention_flops) for w, pair in work.window_pairs),
        comm_base_s=comm_base,
        comm_token_s=comm_token,
        host_s=work.host_s,
        sequence_s=work.sequence_s,
        power=rates.sum_power,
        stages=pp,
    )
    correction = card.correction(device.gpu, model.name) if card.corrections else None
    return found if correction is None else found.corrected(correction)


@lru_cache(maxsize=1024)
def _reached(card: EngineCard, gpu: Gpu) -> Efficiency | None:
    """What the card says of the product: every room of it asks."""
    return card.efficiency(gpu)


@dataclass(frozen=True, slots=True)
class _Work:
    """What one rank and stage has to do, whatever GPU it runs on: bytes, parameters, launches."""

    dense_bytes: float  # read by every step
    expert_bytes: float
    expert_share: float
    active: float  # parameters that a token meets, experts and head apart
    expert_active: float
    head: float
    kv_bytes: tuple[tuple[float, float], ...]  # (width in tokens, per token of context)
    state_bytes: tuple[float, ...]  # per sequence, read and written
    full_pairs: tuple[float, ...]  # flops for each token and token of context
    window_pairs: tuple[tuple[float, float], ...]
    host_s: float
    sequence_s: float


@lru_cache(maxsize=4096)
def _work(
    model: ServedModel,
    card: EngineCard,
    version: str,
    precision: str,
    kv_precision: str,
    tp: int,
    pp: int,
) -> _Work:
    """The same for every room of every product."""
    host, s, p = card.range_of(version).host, scheme(precision), parameters(model, tp)
    held = weights(model, s, tp, pp)
    active, expert_active = _active(model, p, tp, pp)
    head = p.embedding if model.tied_embeddings else p.head
    head = 0.0 if model.task == "embed" else head  # all of it in the last stage, the slowest
    head *= 2 * padded(model.vocab_size / tp) - 1
    kv, states, full, windows = _attention_work(model, kv_precision, tp, pp)
    other = held.other - p.vision * s.other_bytes - position_bytes(model)
    head_bytes = held.embedding if model.tied_embeddings else held.head
    return _Work(
        dense_bytes=held.linear + other + head_bytes,
        expert_bytes=held.experts,
        expert_share=model.moe.experts_per_token / model.moe.experts if model.moe else 0.0,
        active=active,
        expert_active=expert_active,
        head=head,
        kv_bytes=kv,
        state_bytes=states,
        full_pairs=full,
        window_pairs=windows,
        host_s=_host_seconds(model, host, ceil_div(model.layers, pp)),
        sequence_s=host.sequence_us / 1e6,
    )


def _active(model: ServedModel, p: Parameters, tp: int, pp: int) -> tuple[float, float]:
    """Parameters a token meets on one rank and stage: dense ones without the head, experts.

    As computed: matrices whose columns do not fill whole tiles are multiplied as if they did.
    """
    heads = model.attention_heads + (2 * model.kv_heads if model.mla is None else 0)
    attention = p.attention * padded(heads * model.head_size / tp)
    mlp = (p.mlp + p.shared_experts) * padded(model.intermediate_size / tp)
    experts = 0.0
    if model.moe is not None:
        experts = p.experts * model.moe.experts_per_token / model.moe.experts
        experts *= padded(model.moe.intermediate_size / tp)
    return (attention + p.replicated + mlp) / pp, experts / pp


def padded(columns: float) -> float:
    """What a matrix product costs over what it needs: half of a layer's matrices have that width.

    Tensor cores work on tiles of 128 columns (NVIDIA, Matrix Multiplication Background, tile
    quantization); the other half, whose width is the model's, divides evenly.
    """
    if columns <= 0:
        return 1.0
    return (1 + math.ceil(columns / _TILE) * _TILE / columns) / 2


def _attention_work(
    model: ServedModel, kv_precision: str, tp: int, pp: int
) -> tuple[
    tuple[tuple[float, float], ...],
    tuple[float, ...],
    tuple[float, ...],
    tuple[tuple[float, float], ...],
]:
    """KV bytes by width, states, and prompt attention over full and windowed layers."""
    kv: list[tuple[float, float]] = []
    windows: list[tuple[float, float]] = []
    states: list[float] = []
    full: list[float] = []
    heads = model.attention_heads / tp
    size = model.global_head_size or model.head_size
    if model.mla is not None:
        size = (model.mla.qk_nope_head_dim + model.mla.qk_rope_head_dim + model.mla.v_head_dim) // 2
    for kind in layer_kinds(model, KV_BYTES[kv_precision], tp):
        width = float(kind.width) if kind.width else math.inf
        per_pair = 4 * heads * size * kind.layers / pp
        if kind.span == "state":
            states.append(2 * kind.state_bytes * kind.layers / pp)
            continue
        kv.append((width, kind.bytes_per_token * kind.layers / pp))
        if kind.width:
            windows.append((width, per_pair))
        else:
            full.append(per_pair)
    return tuple(kv), tuple(states), tuple(full), tuple(windows)


def _communication(
    model: ServedModel, device: Device, rates: Rates, tp: int, pp: int
) -> tuple[float, float]:
    """Two all-reduces a layer, one hand-over a stage: a fixed part, and seconds per token."""
    base = token = 0.0
    if pp > 1:
        base = HAND_OVER_US / 1e6
        token = handed_over(model) / (device.between_gbs * 1e9 * rates.pcie_efficiency)
    if tp == 1:
        return base, token
    latency = rates.nvlink_latency_us if device.nvlink else rates.pcie_latency_us
    reached = rates.nvlink_efficiency if device.nvlink else rates.pcie_efficiency
    layers = 2 * model.layers / pp
    ring = 2 * (tp - 1) / tp * model.hidden_size * 2 / (device.link_gbs * 1e9 * reached)
    return base + layers * latency / 1e6, token + layers * ring


def handed_over(model: ServedModel) -> int:
    """Bytes that one stage hands to the next for a token: hidden state and residual, 16 bit each.

    Tensor-parallel ranks share the sending (vllm/distributed/parallel_state.py: send_tensor_dict
    with its all_gather_group); what models hand over: IntermediateTensors of
    vllm/model_executor/models/llama.py. Engines that add the two before sending take half.
    """
    return 2 * 2 * model.hidden_size


def _host_seconds(model: ServedModel, host: HostRule, layers: int) -> float:
    sparse = moe_layers(model) * layers / model.layers
    return (layers * host.layer_us + sparse * host.moe_layer_us + host.step_us) / 1e6
