"""Which machine each line of a capture is of: by prompts, ssh and prefixes of parallel shells."""

import re

from optimizer.exchange.imported import File

COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[()][A-Z0-9]|\x1b[=>]")
_PLACE = r"\[?(?:\([^)]*\)\s*)?[\w.\-]+@(?P<host>[\w.\-]+)[^$#%>]*\]?\s*[$#%>]"
_WINDOWS = r"(?:PS )?[A-Z]:\\[^>]*>"
_SHELL = r"(?:ba|z|k)?sh-?[\d.]*[$#]|[~/]\S*\s[$#]|\[[\w.\-]+ [^\]]*\]\s?[$#]"
PROMPT = re.compile(rf"^(?:{_PLACE}|{_WINDOWS}|{_SHELL}|[$#+])\s*(?<=[\s>])(?P<command>\S.*)$")
BARE_PROMPT = re.compile(rf"^(?:{_PLACE}|{_WINDOWS}|{_SHELL})\s*$")
_BARE_COMMAND = re.compile(r"^(?:sudo\s+)?nvidia-smi(?:\s+(?:-|mig\s|topo\s).*)?$")
_ELSEWHERE = re.compile(r"\b(?:kubectl|docker|podman|crictl|srun|lxc)\b")
_CONTAINER = re.compile(r"[0-9a-f]{12}")
# A pod: its random end has no vowels, and is no number that a machine may well have.
_POD = re.compile(r".+-(?!\d{5}$)[bcdfghjklmnpqrstvwxz2456789]{5}")
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
_ANSIBLE = re.compile(r"^([\w.\-]+) \| [A-Z]+!?(?: \|.*)? (?:>>|=> \{)$")
_BAR = re.compile(r"^-{8,}$")  # of dshbak and clush -b, above and below the machines
_GROUP = re.compile(r"^[A-Za-z][\w.\-,\[\]]*(?: \(\d+\))?$")
_MOST_GROUPED = 4096
_PREFIX = re.compile(r"^([A-Za-z][\w.\-]*): ?(.*)$")


def prompt(line: str) -> re.Match[str] | None:
    """A prompt and its command, also where only the command was pasted."""
    return PROMPT.match(f"$ {line}" if _BARE_COMMAND.match(line) else line)


def host_of(line: str) -> str | None:
    """The machine that a command of a captured prompt asks; None where nobody can tell."""
    found = prompt(line)
    if not found or "nvidia-smi" not in found["command"] or _ELSEWHERE.search(found["command"]):
        return None
    host = _remote(found["command"]) or found["host"]
    if host is None or _is_container(host):
        return None
    return host if _ADDRESS.fullmatch(host) else host.split(".")[0]


def is_inside(prompt: re.Match[str]) -> bool:
    """Whether a captured prompt is of a container, or asks one."""
    asks = "nvidia-smi" in prompt["command"] and _ELSEWHERE.search(prompt["command"]) is not None
    return asks or _is_container(prompt["host"] or "")


def _is_container(host: str) -> bool:
    return _CONTAINER.fullmatch(host) is not None or _POD.fullmatch(host) is not None


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
    lines = [COLOURS.sub("", line) for line in file.text.splitlines()]
    prefixed = [_PREFIX.match(line) for line in lines if line.strip()]
    if len(prefixed) > 1 and all(prefixed):
        found = [(m[1].split(".")[0], m[2]) if (m := _PREFIX.match(x)) else ("", "") for x in lines]
        hosts: list[tuple[str, ...]] = [(host,) for host, _ in found]
        lines = [line for _, line in found]
    else:
        lines, hosts = _hosts(lines)
    known = sorted({h for several in hosts for h in several if h})
    if len(known) < 2:
        return [(known[0] if known else None, File(file.name, "\n".join(lines), file.folder))]
    found_lines = list(zip(hosts, lines, strict=True))
    return [
        (
            one,
            File(
                file.name,
                "\n".join(line if one in several else "" for several, line in found_lines),
                file.folder,
            ),
        )
        for one in known
    ]


def _hosts(lines: list[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The machines of each line, headings that only name them left blank.

    What stands before the first name is of the machine that is named first.
    """
    kept: list[str] = []
    found: list[tuple[str, ...]] = []
    now: tuple[str, ...] = ()
    heading = 0  # lines of a heading of dshbak still to come
    for place, line in enumerate(lines):
        named = _heading(lines, place) if not heading else ()
        ansible = _ANSIBLE.match(line)
        if ansible:
            now, heading = (ansible[1].split(".")[0],), 1
        elif named:
            now, heading = named, 3
        elif not heading and (host := host_of(line.strip())):
            now = (host,)
        kept.append("" if heading else line)
        found.append(now)
        heading = max(0, heading - 1)
    first = next((several for several in found if several), ())
    return kept, [several or first or ("",) for several in found]


def _heading(lines: list[str], place: int) -> tuple[str, ...]:
    """The machines that three lines from here name: bar, names, bar; none where they do not."""
    if place + 2 >= len(lines) or not _BAR.match(lines[place]) or not _BAR.match(lines[place + 2]):
        return ()
    names = lines[place + 1].strip()
    return _opened(names.partition(" ")[0]) if _GROUP.match(names) else ()


def _opened(group: str) -> tuple[str, ...]:
    """``n[1-2,7],m3`` as n1, n2, n7 and m3; leading zeros stay."""
    names: list[str] = []
    for part in re.findall(r"[^,\[\]]+(?:\[[^\]]*\][^,\[\]]*)?", group):
        bracket = re.fullmatch(r"([^\[]+)\[([\d,\-]+)\](.*)", part)
        if not bracket:
            names.append(part.split(".")[0])
            continue
        for span in bracket[2].split(","):
            first, _, last = span.partition("-")
            if not first.isdecimal() or not (last or first).isdecimal():
                return ()
            numbers = range(int(first), int(last or first) + 1)[:_MOST_GROUPED]
            names += [f"{bracket[1]}{n:0{len(first)}d}" for n in numbers]
    return tuple(dict.fromkeys(names))[:_MOST_GROUPED]
