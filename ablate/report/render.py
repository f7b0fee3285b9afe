"""Turns a `Document` into Markdown, into one HTML page, and its tables into LaTeX.

Names in a document come from users, so each format escapes everything that it is given.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from ablate.figures.catalogue import DRAWINGS
from ablate.figures.style import INKS
from ablate.report.document import Document, Picture, Section, Table

TEMPLATES = Path(__file__).parent / "templates"
VERDICTS = ("improved", "worse", "equivalent", "inconclusive", "too few seeds")
# A number, then what belongs to it: an interval with its p, or a deviation.
NUMBER = re.compile(r"([+-]?\d[\d.,]*%?(?:e[+-]?\d+)?)(?: (\[.*|± .*))?")
COUNT = re.compile(r"\d+/\d+(, dropped)?")


def numeric(table: Table) -> set[int]:
    """Return which columns hold numbers; the first one names the rows."""
    columns = list(zip(*table.rows, strict=True)) if table.rows else []
    return {
        i
        for i, column in enumerate(columns)
        if i
        and all(
            c == "-" or re.fullmatch(r"\d+/\d+(, dropped)?", c) or NUMBER.fullmatch(c)
            for c in column
        )
    }


# --- Markdown ---------------------------------------------------------------------------------


def markdown(document: Document) -> str:
    """Return a document as Markdown (GitHub's); pictures are the PNGs beside it."""
    parts = [f"# {_plain(document.title)}"]
    parts += [f"> **Warning.** {_plain(document.banner)}"] if document.banner else []
    parts += [_plain(sentence) for sentence in document.opening]
    for section in document.sections:
        parts += _markdown_section(section)
    return "\n\n".join(parts) + "\n"


def _markdown_section(section: Section) -> Iterator[str]:
    yield f"## {_plain(section.title)}"
    yield from map(_plain, section.paragraphs)
    if section.items:
        yield "\n".join(f"- {_plain(item)}" for item in section.items)
    for picture in section.pictures:
        yield f"![{_plain(picture.caption)}]({picture.stem}.png)"
        yield f"*{_plain(picture.caption)}*"
    for table in section.tables:
        yield f"### {_plain(table.title)}"
        yield _markdown_table(table)
        if table.note:
            yield _plain(table.note)


def _markdown_table(table: Table) -> str:
    right = numeric(table)
    marks = ["---:" if i in right else "---" for i in range(len(table.header))]
    rows = [[_plain(cell) for cell in row] for row in table.rows]
    for i in table.emphasised:
        rows[i][0] = f"**{rows[i][0]}**"
    lines = [[_plain(name) for name in table.header], marks, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spelled_out(mark: re.Match[str]) -> str:
    """Return the mark of a heading, list or quotation as characters; a number keeps its digits."""
    return mark[0] + "\\" if mark[0].isdigit() else "\\" + mark[0]


def _plain(text: str) -> str:
    """Return a text in one line in which nothing is Markdown or HTML, a mark in front neither."""
    text = re.sub(r"([\\`*_|~]|\](?=[(\[:]))", r"\\\1", " ".join(text.split()))
    text = re.sub(r"^(#{1,6}|[-+>]|\d+(?=[.)]))(?=[.)]? )", _spelled_out, text)
    return text.replace("&", "&amp;").replace("<", "&lt;")


# --- HTML -------------------------------------------------------------------------------------


def html(document: Document, directory: Path) -> str:
    """Return a document as one page that needs no other file, network or script.

    Figures are those in the study's directory: our drawings inline, in the page's inks, so that
    they follow light and dark; pictures as data. One whose file is not there is left out.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        # Names come from users, and the page is handed on.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., object]] = {
        "cell": _html_cell,
        "prose": _html_prose,
        "figure": lambda picture: _html_figure(picture, directory),
        "numeric": numeric,
    }
    environment.filters |= filters
    page = environment.get_template("report.html")
    return page.render(document=document, style=Markup(_style()))


@cache
def _style() -> str:
    """Return the style sheet: the inks, light and dark, and what is made of them."""
    light, dark = (" ".join(f"--{name}: {pair[i]};" for name, pair in INKS.items()) for i in (0, 1))
    sheet = (TEMPLATES / "report.css").read_text(encoding="utf-8").rstrip()
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{sheet}"
    )


def _html_prose(text: str) -> Markup:
    """Return a text whose intervals and arrows are not broken at a line's end."""
    kept = r"\[[+-][\d.]+, [+-][\d.]+\]|-&gt;"
    return Markup(re.sub(kept, r'<span class="whole">\g<0></span>', str(escape(text))))


def _html_cell(text: str) -> Markup:
    """Return a table's cell: a verdict in its colour, what belongs to a number beside or below."""
    if text in VERDICTS:
        return Markup('<span class="verdict {}">{}</span>').format(text.split()[0], text)
    match = NUMBER.fullmatch(text)
    if not match or not match[2]:
        return escape(text)
    kind = "interval" if match[2].startswith("[") else "detail"
    return Markup('{} <span class="{}">{}</span>').format(match[1], kind, match[2])


def _html_figure(picture: Picture, directory: Path) -> Markup:
    drawing, pixels = (directory / f"{picture.stem}{suffix}" for suffix in (".svg", ".png"))
    if picture.stem in DRAWINGS and drawing.exists():
        content = _inline(drawing.read_text(encoding="utf-8"), picture)
    elif pixels.exists():
        data = base64.b64encode(pixels.read_bytes()).decode()
        content = Markup('<img src="data:image/png;base64,{}" alt="{}">').format(
            data, picture.caption
        )
    else:
        return Markup("")
    return Markup("<figure>\n<div>{}</div>\n<figcaption>{}</figcaption>\n</figure>").format(
        content, picture.caption
    )


def _inline(svg: str, picture: Picture) -> Markup:
    """Return one of our drawings for a page: its ids its own, its inks the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    # Several drawings stand in one page, and matplotlib numbers the ids of each from the start.
    svg = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{picture.stem}-", svg)
    for name, (ink, _) in INKS.items():
        svg = svg.replace(ink, f"var(--{name})")
    start, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', start)
    assert box, "a drawing has a view box"
    opened = Markup('<svg {} role="img" aria-label="{}">').format(Markup(box[0]), picture.caption)
    return opened + Markup(rest.rstrip())


# --- LaTeX ------------------------------------------------------------------------------------

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}", "'": r"\textquotesingle{}", "±": r"$\pm$",
    "[": "{[}", "]": "{]}", "-": "{-}",
}  # fmt: skip


def latex(tables: Sequence[Table]) -> str:
    """Return tables for a paper: booktabs, each number's interval below it in small type."""
    head = r"% needs \usepackage{booktabs,graphicx} and \usepackage[T1]{fontenc}"
    return "\n\n".join([head, *map(_latex_table, tables)]) + "\n"


def _latex_table(table: Table) -> str:
    right = numeric(table)
    columns = ["r" if i in right else "l" for i in range(len(table.header))]
    header = map(_latex_header, table.header, columns)
    lines = [line for i, row in enumerate(table.rows) for line in _latex_rows(row, table, i)]
    note = f" {_latex(table.note)}" if table.note else ""
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{_latex(table.title)}.{note}}}",
            r"\vspace{4pt}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{@{{}}{''.join(columns)}@{{}}}}",
            r"\toprule",
            " & ".join(header) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    )


def _latex_header(name: str, column: str) -> str:
    """Return a column's title, in two lines if it is long."""
    spaces = [i for i, c in enumerate(name) if c == " " and name[i:] != " %"]
    if len(name) < 11 or not spaces:
        return _latex(name)
    middle = min(spaces, key=lambda i: abs(i - len(name) / 2))
    above, below = _latex(name[:middle]), _latex(name[middle + 1 :])
    return rf"\shortstack[{column}]{{{above}\\{below}}}"


def _latex_rows(row: tuple[str, ...], table: Table, index: int) -> Iterator[str]:
    """Yield a row, and a second line with intervals if it has some: narrow enough for a page.

    Then p stands beside its number, and what a name has in brackets goes to the second line too.
    """
    matches = [re.fullmatch(r"(\S+) (\[.*\])(.*)", cell) for cell in row[1:]]
    name = re.fullmatch(r"(.+) (\([^()]*\))", row[0]) if any(matches) else None
    first = _latex(name[1] if name else row[0])
    above = [rf"\textbf{{{first}}}" if index in table.emphasised else first]
    below = [rf"\scriptsize {_latex(name[2])}" if name else ""]
    for cell, match in zip(row[1:], matches, strict=True):
        p = rf" {{\scriptsize {_latex(match[3])}}}" if match and match[3] else ""
        above.append(_latex_number(match[1]) + p if match else _latex_number(cell))
        below.append(rf"\scriptsize {_latex_number(match[2])}" if match else "")
    yield " & ".join(above) + (r" \\[-2pt]" if any(matches) else r" \\")
    if any(matches):
        yield " & ".join(below) + r" \\[2pt]"


def _latex_number(text: str) -> str:
    """Return a cell with its minus signs as such."""
    return re.sub(r"\{-\}(?=\d)", "$-$", _latex(text))


def _latex(text: str) -> str:
    """Return a text in one line in which nothing is a command; rare signs by their number."""
    return "".join(
        SPECIAL.get(c) or (c if c.isascii() else rf"\texttt{{U+{ord(c):04X}}}")
        for c in " ".join(text.split())
        if c.isprintable()
    ).replace(r"{-}\textgreater{}", r"$\to$")
