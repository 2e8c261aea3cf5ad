"""The environment an engine gets: an allow-list, so that no token of ours or of Ray's leaks in."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ALLOWED = frozenset(
    {
        "ALL_PROXY",
        "CURL_CA_BUNDLE",
        "HOME",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "HUGGING_FACE_HUB_TOKEN",
        "LANG",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "NO_PROXY",
        "PATH",
        "PYTHONPATH",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TRITON_CACHE_DIR",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
        "XDG_CACHE_HOME",
    }
)
# Settings of the GPU's libraries and of the engines, and where models are kept.
PREFIXES = ("CUDA_", "HF_", "LC_", "NCCL_", "NVIDIA_", "SGLANG_", "TORCH", "TRTLLM_", "VLLM_")


def allowed(name: str) -> bool:
    """Whether an engine may see this variable of whoever starts it."""
    return name.upper() in ALLOWED or name.startswith(PREFIXES)


def engine_environment(
    base: Mapping[str, str], said: Mapping[str, str], interpreter: str = sys.executable
) -> dict[str, str]:
    """What passes of ``base``, then what is ``said``.

    The interpreter's own folder comes first on the path: engines installed beside us are found
    without an activated environment.
    """
    passed = {name: value for name, value in sorted(base.items()) if allowed(name)}
    folder = str(Path(interpreter).parent)
    passed["PATH"] = os.pathsep.join(filter(None, (folder, base.get("PATH", os.defpath))))
    passed["PYTHONUNBUFFERED"] = "1"  # a log's last lines are wanted when an engine dies
    return passed | dict(said)


def package_path() -> str:
    """The folder that holds this package, so that a child finds it uninstalled too."""
    return str(Path(__file__).resolve().parents[2])


def with_package(base: Mapping[str, str]) -> dict[str, str]:
    """``base`` with this package on Python's path."""
    parts = [package_path(), *filter(None, base.get("PYTHONPATH", "").split(os.pathsep))]
    return dict(base) | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(parts))}
