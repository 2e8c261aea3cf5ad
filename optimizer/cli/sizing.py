"""The command that sizes one model."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli.codes import Code
from optimizer.cli.groups import Showing
from optimizer.cli.terminal import Stop, finish, guarded, say

if TYPE_CHECKING:
    from optimizer.documents import Catalogue
    from optimizer.domain.model import ServedModel
    from optimizer.sizing import SizeOptions

CHOOSE = "Which ways to look at (what is not given is tried)"
ENGINE = "Engine settings, by the engine's own names"
LOAD = "Load (default: the largest rate that keeps the SLO)"


def _flag(panel: str, *names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which ways to look at; what is None is tried."""

    gpu: Annotated[str | None, _flag(CHOOSE, "--gpu", help="GPU product.")] = None
    mig_profile: Annotated[
        str | None, _flag(CHOOSE, "--mig-profile", help="MIG slice of that GPU.")
    ] = None
    precision: Annotated[
        str | None, _flag(CHOOSE, "--precision", help="Of the weights: bf16, fp8...")
    ] = None
    kv_precision: Annotated[
        str | None,
        _flag(CHOOSE, "--kv-precision", "--kv-cache-dtype", help="Of the KV cache: bf16, fp8..."),
    ] = None
    attention: Annotated[str | None, _flag(CHOOSE, "--attention", help="Attention kernel.")] = None
    engine: Annotated[
        str | None,
        _flag(CHOOSE, "--engine", help="Serving engine.", metavar="NAME[@VERSION]"),
    ] = None
    tensor_parallel: Annotated[
        int | None,
        _flag(
            CHOOSE,
            "--tensor-parallel-size",
            "--tensor-parallel",
            help="GPUs that share each layer.",
            min=1,
            max=1024,
        ),
    ] = None
    pipeline_parallel: Annotated[
        int | None,
        _flag(
            CHOOSE,
            "--pipeline-parallel-size",
            "--pipeline-parallel",
            help="Stages of consecutive layers.",
            min=1,
            max=1024,
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What the engine is told; None: its own default."""

    gpu_memory_utilization: Annotated[
        float | None,
        _flag(
            ENGINE,
            "--gpu-memory-utilization",
            help="Part of the memory that the engine may take.",
            min=0.01,
            max=1.0,
        ),
    ] = None
    max_model_len: Annotated[
        int | None, _flag(ENGINE, "--max-model-len", help="Longest context, tokens.", min=1)
    ] = None
    max_num_seqs: Annotated[
        int | None, _flag(ENGINE, "--max-num-seqs", help="Most requests at once.", min=1)
    ] = None
    max_num_batched_tokens: Annotated[
        int | None,
        _flag(ENGINE, "--max-num-batched-tokens", help="Most tokens in one step.", min=1),
    ] = None
    enforce_eager: Annotated[
        bool, _flag(ENGINE, "--enforce-eager", help="Without CUDA graphs.")
    ] = False
    swa_full_tokens_ratio: Annotated[
        float | None,
        _flag(
            ENGINE,
            "--swa-full-tokens-ratio",
            help="SGLang: windowed tokens for each full one.",
            min=0.01,
            max=1.0,
        ),
    ] = None
    max_loras: Annotated[int, _flag(ENGINE, "--max-loras", help="LoRA adapters held.", min=0)] = 0
    max_lora_rank: Annotated[int, _flag(ENGINE, "--max-lora-rank", help="Their rank.", min=1)] = 16
    speculative_config: Annotated[
        str | None,
        _flag(
            ENGINE,
            "--speculative-config",
            help='A draft: {"model": NAME}, or {"method": "eagle"} or "mtp" for a head.',
            metavar="JSON",
        ),
    ] = None
    enable_expert_parallel: Annotated[
        bool, _flag(ENGINE, "--enable-expert-parallel", help="Whole experts on each GPU.")
    ] = False
    prefix_cache_tokens: Annotated[
        int,
        _flag(ENGINE, "--prefix-cache-tokens", help="KV cache kept for shared prefixes.", min=0),
    ] = 0
    other_mib: Annotated[
        int, _flag(ENGINE, "--other-mib", help="Taken by other processes.", min=0)
    ] = 0


@dataclass(frozen=True, slots=True)
class Loading:
    """The traffic and its limits; without a load, the largest rate inside the limits."""

    request_rate: Annotated[
        float | None,
        _flag(LOAD, "--request-rate", help="Requests per second, Poisson.", min=0.001, metavar="R"),
    ] = None
    concurrency: Annotated[
        int | None,
        _flag(
            LOAD,
            "--concurrency",
            help="So many clients, each sending again when answered.",
            min=1,
            metavar="N",
        ),
    ] = None
    offline: Annotated[bool, _flag(LOAD, "--offline", help="All requests queued at once.")] = False
    batch: Annotated[
        int | None, _flag(LOAD, "--batch", help="One static batch.", min=1, metavar="N")
    ] = None
    input_tokens: Annotated[int, _flag(LOAD, "--input-tokens", help="Mean input.", min=1)] = 1024
    output_tokens: Annotated[int, _flag(LOAD, "--output-tokens", help="Mean output.", min=1)] = 256
    ttft_ms: Annotated[
        float | None, _flag(LOAD, "--ttft-ms", help="SLO: time to first token.", min=0.001)
    ] = None
    tpot_ms: Annotated[
        float | None, _flag(LOAD, "--tpot-ms", help="SLO: time per output token.", min=0.001)
    ] = None
    percentile: Annotated[
        float,
        _flag(LOAD, "--percentile", help="Percentile at which the SLO speaks.", min=1, max=99.99),
    ] = 95.0

    def check(self) -> None:
        """One load at a time. Raises Stop."""
        loads = {
            "--request-rate": self.request_rate,
            "--concurrency": self.concurrency,
            "--offline": self.offline or None,
            "--batch": self.batch,
        }
        given = [flag for flag, value in loads.items() if value is not None]
        if len(given) > 1:
            raise Stop(Code.USAGE, f"{' and '.join(given)} are different loads; give one")


@guarded
def size(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model of the catalogue or its Hugging Face id; a config.json or its folder; "
            "or hf:NAME, to fetch that.",
            show_default=False,
        ),
    ],
    *,
    choice: Choice,
    settings: Settings,
    loading: Loading,
    price: Annotated[
        list[str] | None,
        typer.Option(
            "--price",
            metavar="GPU=PRICE",
            help="Price per GPU-hour of a product; may be repeated.",
            show_default=False,
        ),
    ] = None,
    shown: Showing,
) -> None:
    """Size one model: every way to run it.

    Does it fit, how fast is it, what would it cost?

    Exits with 3 when no way is left.

    \b
    Examples:
      fleetslice size llama-3.1-8b
      fleetslice size llama-3.1-70b --gpu h100-80gb-sxm --tensor-parallel-size 4 --precision fp8
      fleetslice size qwen2.5-7b --tpot-ms 30 --ttft-ms 500 --price l40s=0.9
    """
    from optimizer.documents import catalogue
    from optimizer.report import render_size
    from optimizer.sizing import size_json, size_model

    shown.check()
    loading.check()
    known = catalogue([Path.cwd()])
    served, packed = _model(known, model)
    asked = _asked(known, packed, choice, settings, loading, _prices(known, price or ()))
    _check(known, served, asked)
    gpus = {g.name: g for g in known.gpus.all()}
    engines = {card.name: card for card in known.engine_cards()}
    data = size_json(size_model(served, gpus, engines, asked))
    shown.show(data, lambda console: render_size(data, console, ascii=shown.ascii))
    finish(Code.DONE if data["candidates"] else Code.UNMET)


def _asked(
    known: "Catalogue",
    packed: str | None,
    choice: Choice,
    settings: Settings,
    loading: Loading,
    prices: tuple[tuple[str, float], ...],
) -> "SizeOptions":
    """The flags as the sizing takes them; ``packed``: the precision that the model's name means."""
    from optimizer.domain.workload import Extras
    from optimizer.sizing import SizeOptions
    from optimizer.sizing import precision as formats

    draft, heads = _draft(known, settings.speculative_config)
    name, _, version = (choice.engine or "").partition("@")
    return SizeOptions(
        gpu=_product(known, choice.gpu),
        mig_profile=choice.mig_profile,
        precision=choice.precision or packed,
        kv_precision=formats.kv_named(choice.kv_precision),
        attention=choice.attention,
        engine=_engine(known, name, version),
        engine_version=version or None,
        tensor_parallel=choice.tensor_parallel,
        pipeline_parallel=choice.pipeline_parallel,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        enforce_eager=settings.enforce_eager,
        window_ratio=settings.swa_full_tokens_ratio,
        extras=Extras(
            lora_count=settings.max_loras,
            lora_rank=settings.max_lora_rank,
            draft_model=draft,
            other_mib=settings.other_mib,
            prefix_cache_tokens=settings.prefix_cache_tokens,
        ),
        draft_layers=heads,
        expert_parallel=settings.enable_expert_parallel,
        **asdict(loading),
        price_per_gpu_hour=prices,
    )


def _model(known: "Catalogue", name: str) -> "tuple[ServedModel, str | None]":
    from optimizer.documents.deployments import unknown_among

    found = known.model(name)
    if found is None:
        raise Stop(Code.USAGE, known.checkpoint_fault(name) or unknown_among(name, known))
    return found


def _draft(known: "Catalogue", said: str | None) -> "tuple[ServedModel | None, int]":
    """The draft model, or the layers of a head, that vLLM's ``--speculative-config`` names."""
    import json

    if said is None:
        return None, 0
    try:
        config = json.loads(said)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise Stop(Code.USAGE, '--speculative-config: write JSON, as {"method": "mtp"}')
    method = str(config.get("method") or "")
    if method.startswith("eagle") or method.endswith("mtp"):
        return None, 1
    if isinstance(config.get("model"), str):
        return _model(known, config["model"])[0], 0
    if method == "ngram":
        return None, 0
    raise Stop(Code.USAGE, f'--speculative-config: no draft of method "{method}" is known here')


def _product(known: "Catalogue", spelling: str | None) -> str | None:
    from optimizer.documents.fleets import unknown_product

    if spelling is None:
        return None
    found = known.gpu(spelling)
    if found is None:
        raise Stop(Code.USAGE, unknown_product(spelling, known))
    return found.name


def _engine(known: "Catalogue", name: str, version: str) -> str | None:
    from optimizer.documents.faults import unknown
    from optimizer.domain.engine import version_key

    if not name:
        return None
    found = known.engines.find(name)
    if found is None:
        raise Stop(Code.USAGE, unknown("engine", name, known.engines.spellings()))
    try:
        version_key(version or found.default_version)
    except ValueError:
        raise Stop(Code.USAGE, f'--engine: "{version}" is no version; write 0.11.0') from None
    if version and (note := found.version_note(version)):
        say(f"note: {note}")
    return found.name


def _prices(known: "Catalogue", said: Sequence[str]) -> tuple[tuple[str, float], ...]:
    found = []
    for one in said:
        gpu, _, price = one.partition("=")
        try:
            amount = float(price)
        except ValueError:
            amount = -1.0
        if not 0 <= amount < math.inf:
            raise Stop(Code.USAGE, f"--price {one}: write GPU=PRICE, as l40s=0.9")
        found.append((_product(known, gpu) or gpu, amount))
    return tuple(found)


def _check(known: "Catalogue", model: "ServedModel", asked: "SizeOptions") -> None:
    """Flags that contradict each other, or say what cannot be taken. Raises Stop."""
    _check_profile(known, asked)
    _check_formats(asked)
    _check_attention(known, asked)
    if model.task == "embed" and asked.tpot_ms is not None:
        said = f"--tpot-ms: {model.name} embeds and writes no output tokens; limit --ttft-ms"
        raise Stop(Code.USAGE, said)
    if asked.window_ratio is not None:
        _check_window_ratio(known, model, asked)


def _check_profile(known: "Catalogue", asked: "SizeOptions") -> None:
    """A profile that the product does not have is a slip, not a way that does not fit."""
    from optimizer.documents.faults import unknown

    if asked.mig_profile is None:
        return
    if asked.gpu is None:
        raise Stop(Code.USAGE, "--mig-profile needs the GPU it is a slice of: add --gpu")
    gpu = known.gpu(asked.gpu)
    if gpu is None or gpu.mig is None:
        raise Stop(Code.USAGE, f"{asked.gpu} cannot be divided: it has no MIG")
    if gpu.mig.profile(asked.mig_profile) is None:
        names = [p.name for p in gpu.mig.profiles]
        raise Stop(Code.USAGE, unknown(f"profile of {gpu.name}", asked.mig_profile, names))


def _check_formats(asked: "SizeOptions") -> None:
    from optimizer.documents.faults import unknown
    from optimizer.sizing import precision as formats

    if asked.precision is not None and not formats.known(asked.precision):
        said = unknown("precision", asked.precision, formats.SCHEMES)
        raise Stop(Code.USAGE, f"--precision: {said}")
    if asked.kv_precision is not None and asked.kv_precision not in formats.KV_SCHEMES:
        said = unknown("KV precision", asked.kv_precision, formats.KV_SCHEMES)
        raise Stop(Code.USAGE, f"--kv-precision: {said}")


def _check_attention(known: "Catalogue", asked: "SizeOptions") -> None:
    """A kernel that no engine card names is a slip."""
    from optimizer.documents.faults import unknown

    cards = known.engine_cards()
    kernels = sorted({name for card in cards for row in card.attention for name in row.attention})
    if asked.attention is not None and asked.attention not in kernels:
        said = unknown("attention kernel", asked.attention, kernels)
        raise Stop(Code.USAGE, f"--attention: {said}")


def _check_window_ratio(known: "Catalogue", model: "ServedModel", asked: "SizeOptions") -> None:
    """Only engines that keep windowed layers in a pool of their own take the ratio."""
    flag = "--swa-full-tokens-ratio"
    takes = [
        card.name
        for card in known.engine_cards()
        if any(v.memory.window_ratio is not None for v in card.versions)
    ]
    if asked.engine is not None and asked.engine not in takes:
        raise Stop(
            Code.USAGE, f"{flag}: {asked.engine} has no such flag; {' and '.join(takes)} has"
        )
    if asked.engine is None:
        say(f"note: {flag} is a flag of {' and '.join(takes)}; other engines are sized without it")
    if model.sliding_window is None:
        say(f"note: {flag} changes nothing: {model.name} has no sliding window")
