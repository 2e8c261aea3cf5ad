"""How things are drawn: glyphs with their plain ASCII stand-ins, and one colour a tenant."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.style import Style
from rich.table import Table

# Light enough for black text, and told apart by people who see red and green alike.
PALETTE = (
    "#56b4e9",
    "#e69f00",
    "#5fc9a0",
    "#cc79a7",
    "#f0e442",
    "#9aa5f5",
    "#d99a6c",
    "#b8d86b",
    "#f2a0a0",
    "#a0c8c8",
    "#c9a0dc",
    "#bfbfbf",
)


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters of the map and the tables."""

    edge: str = "│"
    free: str = "░"
    stranded: str = "╱"
    first: str = "┌"
    middle: str = "├"
    last: str = "└"
    tenant: str = "■"
    arrow: str = "→"
    dash: str = "-"
    more: str = "…"
    band: str = "±"
    times: str = "×"
    bar: str = "█"
    good: str = "✓"
    bad: str = "✗"


ASCII = Glyphs(
    edge="|",
    free=".",
    stranded="/",
    first="+",
    middle="+",
    last="+",
    tenant="#",
    arrow="->",
    more="~",
    band="+-",
    times="x",
    bar="#",
    good="ok",
    bad="!!",
)


@dataclass(frozen=True, slots=True)
class Ink:
    """What is drawn with, and for whom."""

    console: Console
    glyphs: Glyphs
    ascii: bool
    colours: dict[str, str]

    @classmethod
    def of(cls, console: Console, ascii: bool = False, tenants: Iterable[str] = ()) -> "Ink":
        """Plain ASCII when asked, or where the terminal can show nothing else."""
        plain = ascii or console.options.ascii_only
        names = sorted({*tenants})
        colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
        return cls(console, ASCII if plain else Glyphs(), plain, colours)

    @property
    def width(self) -> int:
        """Columns to draw in; very wide terminals leave the rest empty."""
        return min(200, self.console.width)

    def block(self, tenant: str) -> Style:
        """The style of a tenant's block."""
        colour = self.colours.get(tenant)
        return Style(color="black", bgcolor=colour) if colour else Style(reverse=True)

    def name(self, tenant: str) -> Style:
        """The style of a tenant's name."""
        colour = self.colours.get(tenant)
        return Style(color=colour) if colour else Style()

    def table(self, *, title: str | None = None, caption: str | None = None) -> Table:
        """An empty table in the house's look."""
        return Table(
            title=title,
            caption=caption,
            title_justify="left",
            caption_justify="left",
            title_style="bold",
            caption_style="dim",
            box=box.ASCII2 if self.ascii else box.SIMPLE_HEAD,
            header_style="bold",
            pad_edge=False,
            padding=(0, 1, 0, 0),
            show_edge=False,
            safe_box=True,
            highlight=False,
        )

    def plain(self, text: str) -> str:
        """The text with every character that this drawing may not use replaced."""
        if not self.ascii:
            return text
        swaps = {"→": "->", "×": "x", "±": "+-", "…": "...", "–": "-", "≤": "<=", "≥": ">="}
        for fancy, simple in swaps.items():
            text = text.replace(fancy, simple)
        return text.encode("ascii", "replace").decode()


def shorten(name: str, width: int, more: str = "…") -> str:
    """The name in so many columns; of ``long-name/12`` the number stays readable."""
    if len(name) <= width:
        return name
    if width <= 0:
        return ""
    stem, slash, number = name.rpartition("/")
    tail = f"{slash}{number}"
    if slash and width >= len(tail) + 2:
        return stem[: width - len(tail) - 1] + more + tail
    if slash and width >= len(tail) + 1:
        return stem[:1] + tail
    return name[: max(0, width - 1)] + more if width > 1 else name[:1]
