"""nvidia-smi's machine-readable answers: ``--query-gpu`` CSV, ``-q -x`` XML, ``-q`` plain."""

import csv
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field

from optimizer.exchange.imported import CannotRead, File
from optimizer.exchange.smi_facts import Machine, SeenGpu

_XML_START = re.compile(r"<\?xml|<!DOCTYPE nvidia_smi_log|<nvidia_smi_log")
_XML_END = "</nvidia_smi_log>"
_ALIASES = {
    "gpu_name": "name",
    "gpu_uuid": "uuid",
    "gpu_bus_id": "pci.bus_id",
    "mig.mode": "mig.mode.current",
}
_FIELDS = {"index", "name", "uuid", "pci.bus_id", "memory.total", "mig.mode.current"}
_ASKED = re.compile(r"--query-gpu[= ]([\w.,]+)")
_COLUMN = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*")
_UUID = re.compile(r"GPU-[0-9a-fA-F\-]{8,}$")


def bus(text: str) -> str:
    """A PCI address in one spelling: the domain without its leading zeros, lower case."""
    return text.strip().lower().lstrip("0")


@dataclass(slots=True)
class Query:
    """A table of ``--query-gpu``, or the blocks of ``-q``, while it is being read."""

    fields: list[str] = field(default_factory=list)
    asked_fields: list[str] = field(default_factory=list)
    rows: int = 0
    gpu: SeenGpu | None = None
    heading: str = ""
    inside_mig: bool = False  # the lines are of a MIG device, not of its GPU
    blocks: int = 0

    @classmethod
    def asked(cls, command: str) -> "Query":
        """What a captured command asked for: the columns even of a table without a header."""
        found = _ASKED.search(command)
        names = [_plain(n) for n in found[1].split(",")] if found else []
        return cls(fields=list(names), asked_fields=names)

    def rows_have(self, cells: int) -> bool:
        """Whether a line of so many cells is a row of the table being read."""
        return cells > 1 and cells == len(self.fields)

    def end(self) -> None:
        """A blank line ends a table."""
        if not self.asked_fields:
            self.fields, self.rows = [], 0

    def take(
        self,
        file: File,
        number: int,
        line: str,
        machine: Machine,
        refuse: Callable[[int, str], None],
    ) -> bool:
        """Whether the line is a header or a row of such a table."""
        cells = [c.strip() for c in next(csv.reader([line]), [])]
        names = [_plain(c) for c in cells]
        if {"pid", "process_name"} & set(names):  # --query-compute-apps
            self.fields = []
            return True
        if set(names) & _FIELDS and all(_COLUMN.fullmatch(n) for n in names):
            self.fields, self.rows = names, 0
            return True
        fields = self.fields or _guessed(cells)
        if len(cells) < 2 and len(fields) != 1:
            return False
        if not fields:
            return False
        if len(cells) != len(fields):
            if self.fields and len(cells) > 1:
                refuse(number, f"{len(cells)} values under {len(fields)} columns")
                return True
            return False
        self._row(dict(zip(fields, cells, strict=True)), number, machine, refuse)
        self.rows += 1
        return True

    def _row(
        self,
        row: dict[str, str],
        number: int,
        machine: Machine,
        refuse: Callable[[int, str], None],
    ) -> None:
        broken = [v for v in row.values() if v in ("[Unknown Error]", "[GPU requires reset]")]
        if broken:
            refuse(number, f"a GPU does not answer: {broken[0]}")
            return
        row = {k: v for k, v in row.items() if not v.startswith("[")}  # [N/A], [Not Supported]
        index = row.get("index")
        if index is not None and not index.isdecimal():
            refuse(number, f'"{index}" is no index of a GPU')
            return
        where = bus(row["pci.bus_id"]) if "pci.bus_id" in row else None
        uuid = row.get("uuid")
        place = None if index is None else int(index)
        gpu = machine.find(place, uuid, where, self.rows)
        name = row.get("name")
        for before, now in ((gpu.name, name), (gpu.uuid, uuid)):
            same = before is None or now is None or before == now or before.endswith("...")
            if not same:
                refuse(number, f"GPU {gpu.index} was {before} above and is {now} here")
                return
        gpu.name, gpu.uuid, gpu.bus = name or gpu.name, uuid or gpu.uuid, where or gpu.bus
        memory = re.match(r"(\d+)(?:\s*MiB)?$", row.get("memory.total", ""))
        if memory:
            gpu.memory_mib = int(memory[1])
        mode = row.get("mig.mode.current", "")
        if mode in ("Enabled", "Disabled"):
            gpu.mig = mode == "Enabled"

    def plain(self, line: str, machine: Machine) -> bool:
        """Whether the line belongs to ``nvidia-smi -q``: a block per GPU, ``key : value``."""
        start = re.match(r"^GPU\s+([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.\d)$", line)
        if start:
            self.gpu = machine.find(None, None, bus(start[1]), self.blocks)
            self.gpu.bus, self.heading = bus(start[1]), ""
            self.blocks += 1
            return True
        if re.match(r"^=+NVSMI LOG=+$", line):
            self.blocks = 0
            return True
        key, colon, value = (part.strip() for part in line.partition(" : "))
        if not colon:
            known = self.gpu is not None and re.match(r"^[A-Z][\w /()\-.]*$", line) is not None
            self.heading = line if known else self.heading
            self.inside_mig |= known and line == "MIG Device"
            return known
        if self.gpu is None:
            if key == "Driver Version":
                machine.driver = value
            return key in ("Timestamp", "Driver Version", "CUDA Version", "Attached GPUs")
        self._fact(key, value)
        return True

    def _fact(self, key: str, value: str) -> None:
        gpu = self.gpu
        assert gpu is not None
        self.inside_mig &= key not in ("Accounting Mode", "Serial Number", "GPU UUID")
        match (self.heading, key):
            case (_, "Product Name"):
                gpu.name = value
            case (_, "GPU UUID"):
                gpu.uuid = value
            case ("MIG Mode", "Current") if value in ("Enabled", "Disabled"):
                gpu.mig = value == "Enabled"
            case ("FB Memory Usage", "Total") if not self.inside_mig:
                found = re.match(r"(\d+) MiB", value)
                gpu.memory_mib = int(found[1]) if found else None
            case (_, "GPU Instance ID") if value.isdecimal() and self.inside_mig:
                gpu.held = (gpu.held or set()) | {int(value)}


def _plain(name: str) -> str:
    """A column's name without its unit."""
    plain = re.sub(r"\s*\[[^\]]*\]$", "", name.strip()).lower()
    return _ALIASES.get(plain, plain)


def _guessed(cells: list[str]) -> list[str]:
    """The columns of a row without a header, where its values leave no doubt."""
    found = [_column(c, i) for i, c in enumerate(cells)]
    named = [f for f in found if f and f != "?"]
    unique = len(set(named)) == len(named)
    return [f or "?" for f in found] if "uuid" in named and "name" in named and unique else []


def _column(cell: str, place: int) -> str | None:
    if _UUID.match(cell):
        return "uuid"
    if place == 0 and cell.isdecimal():
        return "index"
    if re.match(r"\d+ MiB$", cell):
        return "memory.total"
    if cell in ("Enabled", "Disabled"):
        return "mig.mode.current"
    if re.match(r"(?:NVIDIA|Tesla|Quadro|GeForce|[AHLBT]\d+)\b", cell):
        return "name"
    return None


def take_xml(file: File, machine: Machine) -> str:
    """Reads every XML answer in the text and gives the text with blank lines in their place."""
    text = file.text
    while found := _XML_START.search(text):
        start = found.start()
        line = text.count("\n", 0, start) + 1
        end = text.find(_XML_END, start)
        if end < 0:
            raise CannotRead(file.at(line, "the XML that starts here is cut off"))
        end += len(_XML_END)
        body = text[start:end]
        log = body.find("<nvidia_smi_log")
        if log < 0:
            raise CannotRead(file.at(line, "broken XML: <nvidia_smi_log> is missing"))
        try:
            root = ElementTree.fromstring(body[log:])
        except ElementTree.ParseError as error:
            at = line + body[:log].count("\n") + error.position[0] - 1
            raise CannotRead(file.at(at, f"broken XML: {error}")) from None
        _read_log(root, machine)
        text = text[:start] + "\n" * body.count("\n") + text[end:]
    return text


def _read_log(root: ElementTree.Element, machine: Machine) -> None:
    machine.driver = root.findtext("driver_version") or machine.driver
    for order, element in enumerate(root.iter("gpu")):
        where = bus(element.get("id") or "") or None
        uuid = element.findtext("uuid")
        gpu = machine.find(None, uuid, where, order)
        gpu.name = element.findtext("product_name") or gpu.name
        gpu.uuid, gpu.bus = uuid or gpu.uuid, where or gpu.bus
        total = re.match(r"(\d{1,9}) MiB", element.findtext("fb_memory_usage/total") or "")
        if total:
            gpu.memory_mib = int(total[1])
        mode = element.findtext("mig_mode/current_mig")
        pending = element.findtext("mig_mode/pending_mig")
        if mode in ("Enabled", "Disabled"):
            gpu.mig, gpu.pending = mode == "Enabled", pending not in (None, mode)
        devices = element.findall("mig_devices/mig_device")
        if gpu.mig and element.find("mig_devices") is not None:
            ids = [d.findtext("gpu_instance_id") or "" for d in devices]
            gpu.held = {int(i) for i in ids if i.isdecimal() and len(i) < 7}
        for process in element.findall("processes/process_info"):
            inside = process.findtext("gpu_instance_id") or "N/A"
            where_in = f" instance {inside}" if inside.isdecimal() else ""
            name, pid = process.findtext("process_name"), process.findtext("pid")
            gpu.processes.append(f"GPU {gpu.index}{where_in}: {name} (pid {pid})")
