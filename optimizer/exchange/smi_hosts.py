"""Which machine each line of a capture is of: by prompts, ssh and prefixes of parallel shells."""

import re

from optimizer.exchange.imported import File

_PLACE = r"\[?(?:\([^)]*\)\s*)?[\w.\-]+@(?P<host>[\w.\-]+)[^$#%>]*\]?\s*[$#%>]"
_WINDOWS = r"(?:PS )?[A-Z]:\\[^>]*>"
PROMPT = re.compile(rf"^(?:{_PLACE}|{_WINDOWS}|[$#+])\s*(?<=[\s>])(?P<command>\S.*)$")
BARE_PROMPT = re.compile(rf"^(?:{_PLACE}|{_WINDOWS})\s*$")
_ELSEWHERE = re.compile(r"\b(?:kubectl|docker|podman|crictl|srun|lxc)\b")
_CONTAINER = re.compile(r"[0-9a-f]{12}")
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
_PREFIX = re.compile(r"^([A-Za-z][\w.\-]*): ?(.*)$")


def host_of(line: str) -> str | None:
    """The machine that a command of a captured prompt asks; None where nobody can tell."""
    found = PROMPT.match(line)
    if not found or "nvidia-smi" not in found["command"] or _ELSEWHERE.search(found["command"]):
        return None
    host = _remote(found["command"]) or found["host"]
    if host is None or _CONTAINER.fullmatch(host):
        return None
    return host if _ADDRESS.fullmatch(host) else host.split(".")[0]


def _remote(command: str) -> str | None:
    """The machine that ``ssh`` runs the command on: the last word before it."""
    words = re.split(r"[\s\"']+", command[: command.index("nvidia-smi")].strip(" \"'"))
    while words and words[-1] == "sudo":
        words.pop()
    if len(words) < 2 or "ssh" not in words[:-1]:
        return None
    return words[-1].rpartition("@")[2] or None


def by_host(file: File) -> list[tuple[str | None, File]]:
    """The file once for each machine in it, other machines' lines left blank."""
    lines = file.text.splitlines()
    prefixed = [_PREFIX.match(line) for line in lines if line.strip()]
    if len(prefixed) > 1 and all(prefixed):
        found = [(m[1].split(".")[0], m[2]) if (m := _PREFIX.match(x)) else ("", "") for x in lines]
        hosts = [host for host, _ in found]
        lines = [line for _, line in found]
    else:
        hosts = _hosts(lines)
    known = sorted({h for h in hosts if h})
    if len(known) < 2:
        return [(known[0] if known else None, File(file.name, "\n".join(lines), file.folder))]
    return [
        (
            one,
            File(
                file.name,
                "\n".join(
                    line if host == one else "" for host, line in zip(hosts, lines, strict=True)
                ),
                file.folder,
            ),
        )
        for one in known
    ]


def _hosts(lines: list[str]) -> list[str]:
    """The machine of each line; what stands before the first prompt is of the first machine."""
    found: list[str] = []
    now = ""
    for line in lines:
        now = host_of(line.strip()) or now
        found.append(now)
    first = next((h for h in found if h), "")
    return [h or first for h in found]
