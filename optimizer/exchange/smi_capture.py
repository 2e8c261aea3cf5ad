"""Texts of nvidia-smi, as files or pasted terminals, to facts; what is no such text is refused."""

import re
from collections.abc import Callable, Iterable

from optimizer.exchange import smi_query
from optimizer.exchange.imported import CannotRead, File
from optimizer.exchange.smi_facts import (
    Machine,
    SeenGpu,
    SeenInstance,
    SeenProfile,
    Selection,
)
from optimizer.exchange.smi_hosts import BARE_PROMPT, COLOURS, is_inside, prompt

_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.,]+(?:Z|[+\-]\d\d:?\d\d)?\s+")  # of kubectl logs
_LIST = re.compile(r"^GPU\s+(\d+):\s*(.+?)\s*\(UUID:\s*((?:GPU-)?[0-9A-Za-z\-]+)\)\s*$")
_LIST_CUT = re.compile(r"^GPU\s+(\d{1,4}):\s+\S")
_LIST_MIG = re.compile(r"^MIG\s+(\S+)\s+Device\s+(\d+):\s*\(UUID:\s*(MIG-\S+?)\)\s*$")
_LIST_MIG_CUT = re.compile(r"^MIG(?:\s+\d\S*(?:\s+D[a-z]*(?:\s.*)?)?)?$")
_PLACEMENTS = re.compile(
    r"^GPU\s+(\d+)\s+Profile ID\s+(\d+)\s+Placements?\s*:\s*\{([\d,\s]*)\}\s*:\s*(\d+)$"
)
_GI_ROW = re.compile(r"^\|?\s*(\d+)\s+MIG\s+(\S+)\s+(\d+)\s+(\d+)\s+(\d+):(\d+)\s*\|?$")
_CI_ROW = re.compile(r"^\|?\s*(\d+)\s+(\d+)\s+MIG\s+(\S+)\s+(\d+)\*?\s+(\d+)\s+(\d+):(\d+)\s*\|?$")
_PROFILE_ROW = re.compile(
    r"^\|?\s*(\d+)\s+MIG\s+(\S+)\s+(\d+)\s+(\d+)/(\d+)\s+(\d+(?:\.\d+)?)\s+(?:Yes|No)\s+(\d+)\b.*$"
)
_CI_PROFILE_ROW = re.compile(r"^\|?\s*(\d+)\s+(\d+)\s+MIG\s+(\S+)\s+(\d+)\*?\s+\d+/\d+\b.*$")
_MORE_ROW = re.compile(r"^\|?[\s\d]+\|?$")  # second and third lines of a row: counts of engines
_BORDER = re.compile(r"^[|+]?[-=+|]{8,}[|+]?$")
_TABLE_HEAD = frozenset(
    ("GPU", "Name", "Profile", "Instance", "Instances", "Placement", "ID", "Start:Size")
    + ("Memory", "P2P", "SM", "DEC", "ENC", "Free/Total", "GiB", "CE", "JPEG", "OFA")
    + ("Exclusive", "Shared")
)
_DRIVER = re.compile(r"Driver Version:\s*([\d.]+)")
_GPU_ROW = re.compile(
    r"^\|\s*(\d+)\s+(\S.*?)\s+(?:On|Off|N/A|WDDM|TCC|MCDM)\s*\|\s*"
    r"([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f])\s"
)
_MEMORY = re.compile(r"(\d+)MiB\s*/\s*(\d+)MiB")
_MIG_CELL = re.compile(r"\|\s*(Enabled|Disabled)(\*?)\s*\|$")
_DEVICE_ROW = re.compile(
    r"^\|\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s*\|\s*\d+MiB\s*/\s*\d+MiB\s*\|\s*\d+\b"
)
_PROCESS_ROW = re.compile(
    r"^\|\s*(\d+)\s+(?:(\d+|N/A)\s+(\d+|N/A)\s+)?(\d+)\s+[CGM+]+\s+(\S.*?)\s+(?:\d+MiB|N/A)\s*\|$"
)
_CREATED = re.compile(
    r"^Successfully (?:created|destroyed) GPU instance ID\s+\d+ (?:on|from) GPU\s+(\d+)"
)
_HARMLESS = re.compile(
    r"All done\.|Successfully |(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)\w*,? "
    r"|Defaulted container |Every [\d.]+s: |Script (?:started|done) on |</?(?:pre|code)>"
)
_MODE_SET = re.compile(r"^(?:Enabled|Disabled) MIG Mode for GPU\s+(\S+?)\.?$", re.IGNORECASE)
_FATAL = re.compile(
    r"No devices were found|couldn't communicate with the NVIDIA driver|Failed to initialize NVML"
    r"|command not found|No such file or directory"
    r"|is not recognized as",
    re.IGNORECASE,
)
_LOST = re.compile(r"Unable to determine the device handle", re.IGNORECASE)
_TROUBLE = re.compile(
    r"Insufficient Permissions|Unknown Error|Not Supported|^Unable to|^Failed to|\bERR!"
    r"|Permission denied|\bNot Found\b|^Error\b|pending (?:enable|disable) state"
    r"|is currently being used by",
    re.IGNORECASE,
)
_SECTIONS = {
    "GPU instances:": "instances",
    "GPU instance profiles:": "profiles",
    "Compute instances:": "compute",
    "Compute instance profiles:": "compute profiles",
    "MIG devices:": "devices",
    "Processes:": "processes",
}
_LONGEST = 4000  # characters of a line; all fields of --query-gpu take two thousand
_TABLES = {"instances", "profiles", "compute", "compute profiles", "devices"}


def read_capture(file: File, machine: Machine) -> None:
    """Adds what the file says to the machine. Raises CannotRead with every line that is refused."""
    text = smi_query.take_xml(file, machine)
    reader = _Reader(file, machine)
    for number, line in enumerate(text.splitlines(), 1):
        reader.take(number, _clean(line))
    reader.end_table()
    if reader.refused:
        raise CannotRead(*reader.refused)


def _clean(line: str) -> str:
    """The line without colours, odd spaces and the marks of quoted text."""
    plain = COLOURS.sub("", line).replace("\u00a0", " ").replace("\t", "    ").replace("\ufeff", "")
    stripped = plain.strip()
    while stripped.startswith(">"):
        stripped = stripped[1:].strip()
    stripped = _STAMP.sub("", stripped)
    return "" if stripped.startswith("```") else stripped.strip("`")


class _Reader:
    """Takes a capture line by line."""

    def __init__(self, file: File, machine: Machine) -> None:
        self.file = file
        self.machine = machine
        self.refused: list[str] = []
        self.section = ""
        self.selection = Selection()
        self.foreign = False  # whether what follows is the answer of another command
        self.query = smi_query.Query()
        self.current: SeenGpu | None = None
        self.closed = True  # whether the table was left at a border
        self.framed = False  # whether the table has borders at all
        self.width = 0  # of its borders
        self.after_border = False
        self.gap = 0  # a line where two borders meet: the end of a table, or a row is missing
        self.last_row: tuple[int, int] | None = None  # line and GPU of the table's last row
        self.rows: dict[int, list[SeenInstance]] = {}

    def refuse(self, line: int, message: str) -> None:
        self.refused.append(self.file.at(line, message))

    def take(self, number: int, line: str) -> None:
        """One line; the first reading that fits is the right one."""
        if len(line) > _LONGEST:
            self.refuse(number, f"{len(line)} characters are more than a line of nvidia-smi has")
            return
        for reading in _READINGS:
            if reading(self, number, line):
                self.after_border &= reading is _Reader._border
                return
        if line and not self.foreign:
            self.machine.strange.append(self.file.at(number, f'not understood: "{line[:80]}"'))

    def end_table(self) -> None:
        """The table ends here; one that ends without its border may lack rows."""
        if self.section == "instances" and (self.rows or self.last_row):
            for index, rows in self.rows.items():
                self.machine.gpu(index).instances = rows
            self.machine.asked.append(self.selection)
        if self.section in _TABLES and self.last_row and self.framed and not self.closed:
            line, gpu = self.last_row
            place = self.file.at(line, "the table breaks off here; capture it whole")
            if self.section == "instances":
                self.machine.cuts.append((place, gpu))
        if self.gap:
            self.refuse(self.gap, "a row of the table is missing here; capture it whole")
        self.section, self.rows, self.last_row, self.gap = "", {}, None, 0
        self.closed, self.framed, self.width = True, False, 0

    # Readings of one line: each says whether the line was its.

    def _prompt(self, number: int, line: str) -> bool:
        if BARE_PROMPT.match(line):
            self.foreign = True
            self.end_table()
            return True
        found = prompt(line)
        if not found or (found["host"] is None and "nvidia-smi" not in line and line[0] == "#"):
            return line.startswith("#") and not found
        self.end_table()
        command = found["command"]
        self.foreign = "nvidia-smi" not in command
        self.machine.inside |= is_inside(found)
        self.query = smi_query.Query.asked(command)
        self.selection = _selection(command)
        return True

    def _blank(self, number: int, line: str) -> bool:
        if line:
            return False
        self.query.end()
        return True

    def _border(self, number: int, line: str) -> bool:
        if not _BORDER.match(line):
            return False
        if self.section == "instances" and self.after_border:
            self.gap = number
        self.framed = self.after_border = True
        self.width = max(self.width, len(line))
        self.closed = len(line) == self.width  # a shorter one is cut off
        return True

    def _heading(self, number: int, line: str) -> bool:
        bare = line.strip("| ")
        for heading, section in _SECTIONS.items():
            if bare == heading:
                self.gap = 0  # one table ends and the next begins
                self.end_table()
                self.section = section
                return True
        if "NVIDIA-SMI" in line and (found := _DRIVER.search(line)):
            self.gap = 0
            self.end_table()
            self.section, self.machine.driver = "main", found[1]
            return True
        return False

    def _listing(self, number: int, line: str) -> bool:
        found = _LIST.match(line)
        if found:
            self.end_table()
            gpu = self.machine.gpu(int(found[1]))
            self._name(number, gpu, found[2], found[3])
            gpu.listed = []
            self.current = gpu
            return True
        inside = _LIST_MIG.match(line)
        if inside:
            if self.current is None or self.current.listed is None:
                self.refuse(number, "a MIG device stands before the GPU that it belongs to")
            else:
                self.current.listed.append(inside[1])
                self.current.mig = True
            return True
        if (
            _LIST_CUT.match(line) and not re.match(r"^GPU\s+\d+:.*(Unknown|Unable|Fail)", line)
        ) or (_LIST_MIG_CUT.match(line)):
            self.refuse(number, f'the line of nvidia-smi -L is cut off: "{line[:80]}"')
            return True
        return False

    def _name(self, number: int, gpu: SeenGpu, name: str, uuid: str | None) -> None:
        name = " ".join(name.split())
        for what, before, now in (("name", gpu.name, name), ("uuid", gpu.uuid, uuid)):
            if what == "name" and (_shortened(before, now) or _shortened(now, before)):
                name = max(before or "", now or "", key=lambda n: (not n.endswith("..."), len(n)))
            elif before is not None and now is not None and before != now:
                self.refuse(number, f"GPU {gpu.index} was {before} above and is {now} here")
        gpu.name, gpu.uuid = name, uuid or gpu.uuid

    def _placement(self, number: int, line: str) -> bool:
        found = _PLACEMENTS.match(line)
        if found:
            starts = tuple(int(s) for s in found[3].split(",") if s.strip())
            gpu = self.machine.gpu(int(found[1]))
            gpu.placements[int(found[2])] = (number, starts, int(found[4]))
            return True
        if re.match(r"^GPU\s+\d+\s+Profile ID\s", line):
            self.refuse(number, f'the line of mig -lgipp is cut off: "{line[:80]}"')
            return True
        return bool(re.match(r"^GPU\s+\d+\s+GI\s+\d+\s+Profile ID\s", line))  # mig -lcipp

    def _row(self, number: int, line: str) -> bool:
        """A row of one of the ``mig`` tables, or a line that its table cannot have."""
        if self.section not in _TABLES - {"devices"}:
            return False
        reading, takes = _ROWS[self.section]
        found = reading.match(line)
        if found:
            takes(self, number, found)
            self.closed = False
            return True
        if re.search(r"\bMIG\b", line) and not _TROUBLE.search(line):
            self.refuse(number, f'this row of the table is not whole: "{line[:80]}"')
            return True
        if _MORE_ROW.match(line) or _TABLE_HEAD.issuperset(line.replace("|", " ").split()):
            return True
        if line.startswith("|") and re.search(r"\d", line):
            self.refuse(number, f'this row of the table is not understood: "{line[:80]}"')
            return True
        return False

    def _take_instance(self, number: int, found: re.Match[str]) -> None:
        index = int(found[1])
        row = SeenInstance(number, found[2], *(int(found[k]) for k in range(3, 7)))
        self.rows.setdefault(index, []).append(row)
        self.last_row = (number, index)

    def _take_compute(self, number: int, found: re.Match[str]) -> None:
        gpu = self.machine.gpu(int(found[1]))
        gpu.compute.setdefault(int(found[2]), []).append(found[3])
        self.last_row = (number, gpu.index)

    def _take_profile(self, number: int, found: re.Match[str]) -> None:
        gpu = self.machine.gpu(int(found[1]))
        free, total = int(found[4]), int(found[5])
        row = SeenProfile(number, found[2], free, total, float(found[6]), int(found[7]))
        gpu.profiles[int(found[3])] = row
        self.last_row = (number, gpu.index)

    def _take_nothing(self, number: int, found: re.Match[str]) -> None:
        self.last_row = (number, int(found[1]))

    def _device(self, number: int, line: str) -> bool:
        if self.section != "devices":
            return False
        if "No MIG devices found" in line:
            for gpu in self.machine.gpus.values():
                if gpu.mig and gpu.held is None:
                    gpu.held = set()
            return True
        found = _DEVICE_ROW.match(line)
        if found:
            gpu = self.machine.gpu(int(found[1]))
            gpu.held = (gpu.held or set()) | {int(found[2])}
            gpu.mig = True
            self.last_row, self.closed = (number, gpu.index), False
            return True
        if line.startswith("|") and re.match(r"^\|\s*\d+\s+\d+\s+\d+\s+\d+", line):
            self.refuse(number, f'this row of the table is not whole: "{line[:80]}"')
            return True
        return line.startswith("|")

    def _process(self, number: int, line: str) -> bool:
        if self.section != "processes":
            return False
        found = _PROCESS_ROW.match(line)
        if found:
            inside = f" instance {found[2]}" if (found[2] or "N/A") != "N/A" else ""
            name = f"GPU {found[1]}{inside}: {found[5]} (pid {found[4]})"
            self.machine.gpu(int(found[1])).processes.append(name)
        return line.startswith("|")

    def _main(self, number: int, line: str) -> bool:
        if self.section != "main":
            return False
        found = _GPU_ROW.match(line)
        if found:
            self.current = gpu = self.machine.gpu(int(found[1]))
            self._name(number, gpu, found[2], None)
            gpu.bus = smi_query.bus(found[3])
            return True
        if not line.startswith("|"):
            return False
        if self.current is not None:
            memory, mode = _MEMORY.search(line), _MIG_CELL.search(line)
            if memory and self.current.memory_mib is None:
                self.current.memory_mib = int(memory[2])
            if mode and not memory:
                self.current.mig, self.current.pending = mode[1] == "Enabled", bool(mode[2])
        if "ERR!" in line:
            self.machine.troubles.append(self.file.at(number, f'"{line[:90]}"'))
        return True

    def _change(self, number: int, line: str) -> bool:
        """What stood above about instances is no longer so."""
        changed = _CREATED.match(line)
        if changed:
            self.end_table()
            for gpu in self.machine.gpus.values():
                gpu.forget_instances()
            self.machine.gpu(int(changed[1])).mig = True
            self.machine.asked.clear()
            return True
        found = _MODE_SET.match(line)
        if found:
            self.end_table()
            turned = line.lower().startswith("enabled")
            gpus = [g for g in self.machine.gpus.values() if g.bus == smi_query.bus(found[1])]
            for gpu in gpus:
                gpu.forget_instances()
                gpu.mig, gpu.pending = turned, False
            return True
        return bool(_HARMLESS.match(line))

    def _answer(self, number: int, line: str) -> bool:
        """``mig`` has nothing to list, and says why."""
        if re.search(r"No MIG-enabled devices found", line):
            self._each(lambda gpu: setattr(gpu, "mig", False))
            return True
        if re.search(r"No GPU instances found", line):
            self._each(lambda gpu: setattr(gpu, "instances", []))
            if self.selection.only is not None and len(self.selection.only) == 1:
                # One that has MIG off would have answered so.
                self._each(lambda gpu: setattr(gpu, "mig", True))
            self.machine.asked.append(self.selection)
            return True
        return bool(re.search(r"No compute instances found", line, re.IGNORECASE))

    def _each(self, change: Callable[[SeenGpu], None]) -> None:
        """Changes the GPUs that the command was for; those not seen yet are seen by this."""
        only = self.selection.only
        for index in sorted(only if only is not None else self.machine.gpus):
            change(self.machine.gpu(index))

    def _error(self, number: int, line: str) -> bool:
        if self.query.rows_have(line.count(",") + 1):
            return False
        if _LOST.search(line):
            self.refuse(number, f'a GPU does not answer, so the rest cannot be told: "{line}"')
            return True
        if _FATAL.search(line):
            told = self.file.at(number, f'nvidia-smi did not answer: "{line[:120]}"')
            self.machine.fatal.append(told)
            return True
        if "No MIG-supported devices found" in line or _TROUBLE.search(line):
            self.machine.troubles.append(self.file.at(number, f'"{line[:120]}"'))
            return True
        return False

    def _stray(self, number: int, line: str) -> bool:
        if not any(row.match(line) for row in (_GI_ROW, _CI_ROW, _PROFILE_ROW)):
            return False
        self.refuse(number, f'this row stands in no table; capture it whole: "{line[:80]}"')
        return True

    def _csv(self, number: int, line: str) -> bool:
        return self.query.take(self.file, number, line, self.machine, self.refuse)

    def _key_value(self, number: int, line: str) -> bool:
        return self.query.plain(line, self.machine)


def _shortened(short: str | None, long: str | None) -> bool:
    if not short or not long or not short.endswith("..."):
        return False
    return long.startswith(short.removesuffix("...")) or long.startswith(
        short.removesuffix("...").removeprefix("NVIDIA ")
    )


def _selection(command: str) -> Selection:
    """The GPUs that a command asks for with ``-i``; by bus id or UUID nobody knows which."""
    if "nvidia-smi" not in command:
        return Selection()
    chosen = re.search(r"(?:\s-i|\s--id)[\s=]+([\w,:.\-]+)", command)
    if not chosen:
        return Selection(known=True)
    parts = chosen[1].split(",")
    if all(p.isdecimal() for p in parts):
        return Selection(known=True, only=frozenset(map(int, parts)))
    return Selection()


_ROWS: dict[str, tuple[re.Pattern[str], Callable[[_Reader, int, re.Match[str]], None]]] = {
    "instances": (_GI_ROW, _Reader._take_instance),
    "profiles": (_PROFILE_ROW, _Reader._take_profile),
    "compute": (_CI_ROW, _Reader._take_compute),
    "compute profiles": (_CI_PROFILE_ROW, _Reader._take_nothing),
}
_READINGS: Iterable[Callable[[_Reader, int, str], bool]] = (
    _Reader._blank,
    _Reader._border,
    _Reader._heading,
    _Reader._prompt,
    _Reader._change,
    _Reader._answer,
    _Reader._row,
    _Reader._device,
    _Reader._process,
    _Reader._main,
    _Reader._placement,
    _Reader._error,
    _Reader._listing,
    _Reader._stray,
    _Reader._csv,
    _Reader._key_value,
)
