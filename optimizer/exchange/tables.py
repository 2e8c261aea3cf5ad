"""CSV tables of others: columns by name, whatever their order, spelling and separator."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from optimizer.exchange.imported import CannotRead, File


@dataclass(frozen=True, slots=True)
class Row:
    """One row: values by column, and the line it ends on."""

    file: File
    line: int
    values: Mapping[str, str]

    def at(self, message: str) -> str:
        """A reason with the row's place."""
        return self.file.at(self.line, message)

    def text(self, column: str) -> str | None:
        """The value of a column; None where it is empty."""
        return self.values.get(column) or None

    def number(self, column: str) -> float | None:
        """The number of a column; None where it is empty. Raises CannotRead."""
        said = self.text(column)
        if said is None:
            return None
        plain = said.replace("\u00a0", "").replace(" ", "").replace("_", "")
        plain = re.sub(r",(?=\d{3}(\D|$))", "", plain) if "." in plain else plain
        if re.fullmatch(r"[+-]?\d+,\d{1,2}", plain):
            plain = plain.replace(",", ".")
        try:
            value = float(plain)
        except ValueError:
            raise CannotRead(self.at(f'{column}: "{said}" is no number')) from None
        if value < 0 or value != value or value == float("inf"):
            raise CannotRead(self.at(f"{column}: must be 0 or more, got {said}"))
        return value

    def whole(self, column: str) -> int | None:
        """The whole number of a column. Raises CannotRead."""
        value = self.number(column)
        if value is not None and value != int(value):
            raise CannotRead(self.at(f"{column}: must be whole, got {self.text(column)}"))
        return None if value is None else int(value)


def plain(name: str) -> str:
    """A column's name in one spelling: ``Requests/s`` is ``requests_s``."""
    return re.sub(r"[^a-z0-9%]+", "_", name.strip().lower()).strip("_")


def rows(file: File) -> tuple[list[str], Iterator[Row]]:
    """The columns as written, and the rows under them. Raises CannotRead."""
    lines = file.text.splitlines()
    first = next((n for n, line in enumerate(lines) if line.strip(" ,;\t")), None)
    if first is None:
        raise CannotRead(f"{file.name}: is empty")
    head = lines[first]
    separator = max(",;\t|", key=head.count)
    reader = csv.reader(io.StringIO("\n".join(lines[first:])), delimiter=separator)
    columns = next(reader)
    names = [plain(c) for c in columns]
    twice = sorted({c for c, n in zip(columns, names, strict=True) if n and names.count(n) > 1})
    if twice:
        raise CannotRead(file.at(first + 1, f"two columns are called {' and '.join(twice)}"))

    def read() -> Iterator[Row]:
        for cells in reader:
            line = first + reader.line_num
            if not any(c.strip() for c in cells):
                continue
            if len(cells) > len(names) and any(c.strip() for c in cells[len(names) :]):
                told = f"{len(cells)} values under {len(names)} columns"
                raise CannotRead(file.at(line, told))
            padded = [*cells, *[""] * (len(names) - len(cells))]
            values = {n: c.strip() for n, c in zip(names, padded, strict=False) if n}
            yield Row(file, line, values)

    return columns, read()
