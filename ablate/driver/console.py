"""What commands print for a person."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from ablate.report.document import Document


def make_console(output: str = "auto") -> Console:
    """Return a console as wide as the terminal, and wide enough for the tables in a log.

    It says nothing if the output is not for a person to read.
    """
    quiet = output != "auto"
    console = Console(quiet=quiet)
    return console if console.is_terminal else Console(width=200, quiet=quiet)


def warn(text: str) -> None:
    """Tell a person what is not as it should be, apart from the command's output."""
    Console(stderr=True).print(text, style="yellow", markup=False)


def show(document: Document, console: Console) -> None:
    """Print a report's tables, what is doubtful, and the opening last, where the eye is."""
    for section in (s for s in document.sections if not s.folded):
        for table in section.tables:
            grid = RichTable(title=table.title, title_justify="left", box=None, pad_edge=False)
            for i, name in enumerate(table.header):
                grid.add_column(name, justify="left" if i == 0 else "right")
            for row in table.rows:
                grid.add_row(*(cell.replace("[", r"\[") for cell in row))
            console.print()
            console.print(grid)
        for item in section.items:
            console.print(item, highlight=False, markup=False)
    console.print()
    if document.banner:
        console.print(document.banner, style="yellow", highlight=False, markup=False)
    for sentence in document.opening:
        console.print(sentence, highlight=False, markup=False)


def tell_report(document: Document, path: Path) -> None:
    """Print what a report begins with, and where it is."""
    print(*([f"WARNING {document.banner}"] if document.banner else []), *document.opening, sep="\n")
    print(f"report: {path}")
