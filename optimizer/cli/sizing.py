"""The command that sizes one model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.cli import options
from optimizer.cli.codes import Code
from optimizer.cli.options import Output
from optimizer.cli.terminal import (
    Stop,
    check_writable,
    finish,
    guarded,
    refuse_output,
    show_data,
    stdout,
    write_result,
)

if TYPE_CHECKING:
    from optimizer.documents import Catalogue
    from optimizer.domain.model import ServedModel
    from optimizer.sizing import SizeOptions

CHOOSE = "Which ways to look at (what is not given is tried)"
ENGINE = "Engine settings, by the engine's own names"
LOAD = "Load (default: the largest rate that keeps the SLO)"


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
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="GPU product.", rich_help_panel=CHOOSE)
    ] = None,
    mig_profile: Annotated[
        str | None,
        typer.Option("--mig-profile", help="MIG slice of that GPU.", rich_help_panel=CHOOSE),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="Of the weights: bf16, fp8...", rich_help_panel=CHOOSE),
    ] = None,
    kv_precision: Annotated[
        str | None,
        typer.Option(
            "--kv-precision",
            "--kv-cache-dtype",
            help="Of the KV cache: bf16, fp8...",
            rich_help_panel=CHOOSE,
        ),
    ] = None,
    attention: Annotated[
        str | None, typer.Option("--attention", help="Attention kernel.", rich_help_panel=CHOOSE)
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine", metavar="NAME[@VERSION]", help="Serving engine.", rich_help_panel=CHOOSE
        ),
    ] = None,
    tensor_parallel: Annotated[
        int | None,
        typer.Option(
            "--tensor-parallel-size",
            "--tensor-parallel",
            min=1,
            max=1024,
            help="GPUs that share each layer.",
            rich_help_panel=CHOOSE,
        ),
    ] = None,
    pipeline_parallel: Annotated[
        int | None,
        typer.Option(
            "--pipeline-parallel-size",
            "--pipeline-parallel",
            min=1,
            max=1024,
            help="Stages of consecutive layers.",
            rich_help_panel=CHOOSE,
        ),
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(
            "--gpu-memory-utilization",
            min=0.01,
            max=1.0,
            help="Part of the memory that the engine may take.",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            "--max-model-len", min=1, help="Longest context, tokens.", rich_help_panel=ENGINE
        ),
    ] = None,
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            "--max-num-seqs", min=1, help="Most requests at once.", rich_help_panel=ENGINE
        ),
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-num-batched-tokens",
            min=1,
            help="Most tokens in one step.",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    enforce_eager: Annotated[
        bool,
        typer.Option("--enforce-eager", help="Without CUDA graphs.", rich_help_panel=ENGINE),
    ] = False,
    swa_full_tokens_ratio: Annotated[
        float | None,
        typer.Option(
            "--swa-full-tokens-ratio",
            min=0.01,
            max=1.0,
            help="SGLang: windowed tokens for each full one.",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    max_loras: Annotated[
        int,
        typer.Option("--max-loras", min=0, help="LoRA adapters held.", rich_help_panel=ENGINE),
    ] = 0,
    max_lora_rank: Annotated[
        int,
        typer.Option("--max-lora-rank", min=1, help="Their rank.", rich_help_panel=ENGINE),
    ] = 16,
    speculative_config: Annotated[
        str | None,
        typer.Option(
            "--speculative-config",
            metavar="JSON",
            help='A draft: {"model": NAME}, or {"method": "eagle"} or "mtp" for a head.',
            rich_help_panel=ENGINE,
        ),
    ] = None,
    enable_expert_parallel: Annotated[
        bool,
        typer.Option(
            "--enable-expert-parallel", help="Whole experts on each GPU.", rich_help_panel=ENGINE
        ),
    ] = False,
    prefix_cache_tokens: Annotated[
        int,
        typer.Option(
            "--prefix-cache-tokens",
            min=0,
            help="KV cache kept for shared prefixes.",
            rich_help_panel=ENGINE,
        ),
    ] = 0,
    other_mib: Annotated[
        int,
        typer.Option(
            "--other-mib", min=0, help="Taken by other processes.", rich_help_panel=ENGINE
        ),
    ] = 0,
    request_rate: Annotated[
        float | None,
        typer.Option(
            "--request-rate",
            min=0.001,
            metavar="R",
            help="Requests per second, Poisson.",
            rich_help_panel=LOAD,
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            min=1,
            metavar="N",
            help="So many clients, each sending again when answered.",
            rich_help_panel=LOAD,
        ),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="All requests queued at once.", rich_help_panel=LOAD),
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, metavar="N", help="One static batch.", rich_help_panel=LOAD),
    ] = None,
    input_tokens: Annotated[
        int, typer.Option("--input-tokens", min=1, help="Mean input.", rich_help_panel=LOAD)
    ] = 1024,
    output_tokens: Annotated[
        int, typer.Option("--output-tokens", min=1, help="Mean output.", rich_help_panel=LOAD)
    ] = 256,
    ttft_ms: Annotated[
        float | None,
        typer.Option(
            "--ttft-ms", min=0.001, help="SLO: time to first token.", rich_help_panel=LOAD
        ),
    ] = None,
    tpot_ms: Annotated[
        float | None,
        typer.Option(
            "--tpot-ms", min=0.001, help="SLO: time per output token.", rich_help_panel=LOAD
        ),
    ] = None,
    percentile: Annotated[
        float,
        typer.Option(
            "--percentile",
            min=1,
            max=99.99,
            help="Percentile at which the SLO speaks.",
            rich_help_panel=LOAD,
        ),
    ] = 95.0,
    price: Annotated[
        list[str] | None,
        typer.Option(
            "--price",
            metavar="GPU=PRICE",
            help="Price per GPU-hour of a product; may be repeated.",
            show_default=False,
        ),
    ] = None,
    output: options.Shown = Output.TABLE,
    out: options.OutFile = None,
    ascii: options.Ascii = False,
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
    from optimizer.domain.workload import Extras
    from optimizer.sizing import SizeOptions, size_json, size_model
    from optimizer.sizing import precision as formats

    refuse_output(output, Output.TABLE, Output.JSON, Output.YAML)
    check_writable(out)
    known = catalogue([Path.cwd()])
    found = _model(known, model)
    draft, heads = _draft(known, speculative_config)
    name, _, version = (engine or "").partition("@")
    asked = SizeOptions(
        gpu=_product(known, gpu),
        mig_profile=mig_profile,
        precision=precision or found[1],
        kv_precision=formats.kv_named(kv_precision),
        attention=attention,
        engine=_engine(known, name, version),
        engine_version=version or None,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        gpu_memory_utilization=gpu_memory_utilization,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        enforce_eager=enforce_eager,
        window_ratio=swa_full_tokens_ratio,
        extras=Extras(
            lora_count=max_loras,
            lora_rank=max_lora_rank,
            draft_model=draft,
            other_mib=other_mib,
            prefix_cache_tokens=prefix_cache_tokens,
        ),
        draft_layers=heads,
        expert_parallel=enable_expert_parallel,
        request_rate=request_rate,
        concurrency=concurrency,
        offline=offline,
        batch=batch,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        percentile=percentile,
        price_per_gpu_hour=_prices(known, price or ()),
    )
    _check(asked)
    _check_profile(known, asked)
    gpus = {g.name: g for g in known.gpus.all()}
    engines = {card.name: card for card in known.engine_cards()}
    data = size_json(size_model(found[0], gpus, engines, asked))
    if output is Output.TABLE:
        from optimizer.report import render_size

        render_size(data, stdout(), ascii=ascii)
    else:
        show_data(data, output)
    write_result(out, data)
    finish(Code.DONE if data["candidates"] else Code.UNMET)


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
    return found.name


def _prices(known: "Catalogue", said: Sequence[str]) -> tuple[tuple[str, float], ...]:
    found = []
    for one in said:
        gpu, _, price = one.partition("=")
        try:
            amount = float(price)
        except ValueError:
            raise Stop(Code.USAGE, f"--price {one}: write GPU=PRICE, as l40s=0.9") from None
        found.append((_product(known, gpu) or gpu, amount))
    return tuple(found)


def _check_profile(known: "Catalogue", asked: "SizeOptions") -> None:
    """A profile that the product does not have is a slip, not a way that does not fit."""
    from optimizer.documents.faults import unknown

    gpu = known.gpu(asked.gpu) if asked.gpu is not None else None
    if gpu is None or asked.mig_profile is None:
        return
    if gpu.mig is None:
        raise Stop(Code.USAGE, f"{gpu.name} cannot be divided: it has no MIG")
    if gpu.mig.profile(asked.mig_profile) is None:
        names = [p.name for p in gpu.mig.profiles]
        raise Stop(Code.USAGE, unknown(f"profile of {gpu.name}", asked.mig_profile, names))


def _check(asked: "SizeOptions") -> None:
    """Flags that contradict each other, or name what cannot be sized. Raises Stop."""
    from optimizer.documents.faults import unknown
    from optimizer.sizing import precision as formats

    loads = {
        "--request-rate": asked.request_rate,
        "--concurrency": asked.concurrency,
        "--offline": asked.offline or None,
        "--batch": asked.batch,
    }
    given = [flag for flag, value in loads.items() if value is not None]
    if len(given) > 1:
        raise Stop(Code.USAGE, f"{' and '.join(given)} are different loads; give one")
    if asked.mig_profile is not None and asked.gpu is None:
        raise Stop(Code.USAGE, "--mig-profile needs the GPU it is a slice of: add --gpu")
    if asked.precision is not None and not formats.known(asked.precision):
        said = unknown("precision", asked.precision, formats.SCHEMES)
        raise Stop(Code.USAGE, f"--precision: {said}")
    if asked.kv_precision is not None and asked.kv_precision not in formats.KV_SCHEMES:
        said = unknown("KV precision", asked.kv_precision, formats.KV_SCHEMES)
        raise Stop(Code.USAGE, f"--kv-precision: {said}")
