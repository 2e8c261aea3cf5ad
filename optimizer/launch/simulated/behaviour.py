"""How a simulated engine behaves."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the engine behaves. Milliseconds, tokens; ``kv_tokens`` None: not limited."""

    model: str = "model"
    task: str = "any"  # generate | embed | predict | any
    ttft_ms: float = 50.0
    tpot_ms: float = 10.0
    output_tokens: int = 64
    max_num_seqs: int = 256
    max_model_len: int = 32768
    kv_tokens: int | None = None
    queue: int = 1024
    fault: str | None = None

    def fault_after(self, name: str) -> float | None:
        """Seconds after which the fault of that name begins; None: it does not."""
        kind, _, after = (self.fault or "").partition(":")
        return float(after or 0) if kind == name else None
