from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from studies import HOSTILE

from ablate.figures.style import INKS, SERIES, new_figure, save, with_style
from ablate.report.document import Document, Picture, Section, Table
from ablate.report.render import html, latex, markdown, numeric

TABLE = Table(
    title="Effects",
    header=("contrast", "loss %", "± loss", "seeds", "verdict"),
    rows=[
        ("a -> b (primary)", "+1.25 [-0.50, +3.00] p=2.9e-05", "13.05 ± 0.07", "3/3", "improved"),
        (HOSTILE, "-", "-", "0/3", "too few seeds"),
    ],
    note="A note & more.",
    emphasised=frozenset({0}),
)
DOCUMENT = Document(
    title="Study <x>",
    banner="EXPLORATORY: <i>",
    opening=["First +1.25% [-0.50, +3.00].", f"Second {HOSTILE}."],
    sections=[
        Section(title="One", paragraphs=[HOSTILE], tables=[TABLE], items=[HOSTILE]),
        Section(title="Two", pictures=[Picture(stem="gone", caption="Nowhere")]),
        Section(title="Three", items=["folded away"], folded=True),
    ],
)
VOID = {"meta", "img", "br", "path", "use"}


class Page(HTMLParser):
    """What a page holds: its elements in order, texts by element, and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open:
            self.texts.append((self.open[-1], data.strip()))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_hostile_names_are_text_in_html(tmp_path: Path) -> None:
    page = Page(html(DOCUMENT, tmp_path))
    for tag in ("p", "th", "li"):
        assert any(HOSTILE in text for where, text in page.texts if where == tag), tag
    assert page.of("b") == page.of("i") == page.of("script") == []
    assert [where for where, text in page.texts if text == "Study <x>"] == ["title", "h1"]


def test_a_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    text = html(DOCUMENT, tmp_path).replace("http://q", "")  # of the hostile name
    assert "http" not in text
    assert "<script" not in text
    assert "url(" not in text
    for tag in ("link", "iframe", "object"):
        assert Page(text).of(tag) == []


def test_a_page_is_fit_for_screen_readers(tmp_path: Path) -> None:
    page = Page(html(DOCUMENT, tmp_path))
    assert page.of("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels == [1, 2, 2, 2]
    scopes = [attributes.get("scope") for attributes in page.of("th")]
    assert scopes == ["col"] * 5 + ["row"] * 2
    assert page.of("div")[1]["aria-label"] == "Effects"
    assert page.of("div")[1]["tabindex"] == "0"
    targets = {"#" + str(attributes["id"]) for attributes in page.of("section")}
    assert {attributes["href"] for attributes in page.of("a")} == targets


def test_the_opening_is_first_and_the_stamp_above_it(tmp_path: Path) -> None:
    page = Page(html(DOCUMENT, tmp_path))
    texts = [text for _, text in page.texts]
    first = texts.index("First +1.25%")
    assert texts.index("EXPLORATORY: <i>") < first < texts.index("Effects")
    shown = Document(title="t", banner="", opening=["o"], sections=[])
    assert "Warning" not in html(shown, tmp_path) + markdown(shown)


def test_verdicts_are_words_in_colour_and_intervals_stand_below(tmp_path: Path) -> None:
    text = html(DOCUMENT, tmp_path)
    assert '<span class="verdict improved">improved</span>' in text
    assert '<span class="verdict too">too few seeds</span>' in text
    assert '+1.25 <span class="interval">[-0.50, +3.00] p=2.9e-05</span>' in text
    assert '13.05 <span class="detail">± 0.07</span>' in text
    assert '<span class="whole">[-0.50, +3.00]</span>' in text


def test_folded_sections_are_details(tmp_path: Path) -> None:
    text = html(DOCUMENT, tmp_path)
    assert text.count("<details>") == 1
    inside = text[text.index("<details>") : text.index("</details>")]
    assert "<summary><h2>Three</h2></summary>" in inside
    assert "folded away" in inside


def test_light_and_dark_have_every_ink(tmp_path: Path) -> None:
    text = html(DOCUMENT, tmp_path)
    light, dark = text.index("--paper: #ffffff"), text.index("prefers-color-scheme: dark")
    assert light < dark
    used = set(re.findall(r"var\(--([\w-]+)\)", text))
    assert used <= INKS.keys()
    for name, (a, b) in INKS.items():
        assert f"--{name}: {a};" in text[:dark]
        assert f"--{name}: {b};" in text[dark:]


@with_style
def drawing(path: Path) -> None:
    figure = new_figure(4, 2)
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], color=SERIES[0])
    panel.fill_between([0, 1], [0, 1], [1, 2], color=SERIES[0], alpha=0.2)
    panel.set_title(HOSTILE)
    save(figure, path)


def test_drawings_are_inline_in_the_pages_inks(tmp_path: Path) -> None:
    stems = ("effects", "cost", "gone")
    pictures = [Picture(stem=stem, caption=f"Of {stem} & <b>") for stem in stems]
    for stem in ("effects", "cost"):
        drawing(tmp_path / f"{stem}.svg")
    text = html(
        Document(
            title="t", banner="", opening=[], sections=[Section(title="s", pictures=pictures)]
        ),
        tmp_path,
    )
    page = Page(text)
    assert [svg["aria-label"] for svg in page.of("svg")] == ["Of effects & <b>", "Of cost & <b>"]
    assert all(svg["role"] == "img" for svg in page.of("svg"))
    assert ("text", HOSTILE) in page.texts
    body = text[text.index("<main>") :].replace("http://q", "")
    assert "http" not in body
    assert re.findall(r"#[0-9a-f]{6}\b", body) == []
    assert "var(--series-1)" in body
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), "ids of two drawings differ"
    for used in re.findall(r'(?:url\(|href=")#([^)"]+)', body):
        assert used in ids


def test_pictures_are_data(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "captions.png")
    section = Section(title="s", pictures=[Picture(stem="captions", caption='Said "so"')])
    shown = Document(title="t", banner="", opening=[], sections=[section])
    (image,) = Page(html(shown, tmp_path)).of("img")
    assert str(image["src"]).startswith("data:image/png;base64,iVBOR")
    assert image["alt"] == 'Said "so"'


def test_a_drawing_that_is_not_ours_is_not_taken_in(tmp_path: Path) -> None:
    hostile = '<svg viewBox="0 0 1 1"><script>alert(1)</script></svg>'
    Image.new("RGB", (3, 2)).save(tmp_path / "captions.png")
    for stem in ("captions", "other"):
        (tmp_path / f"{stem}.svg").write_text(hostile)
    pictures = [Picture(stem=stem, caption="c") for stem in ("captions", "other")]
    section = Section(title="s", pictures=pictures)
    text = html(Document(title="t", banner="", opening=[], sections=[section]), tmp_path)
    assert "alert" not in text
    assert len(Page(text).of("img")) == 1


def test_markdown_keeps_hostile_names_in_their_cell() -> None:
    lines = markdown(DOCUMENT).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [6] * 4
    assert "| --- | ---: | ---: | ---: | --- |" in rows
    assert rows[2].startswith("| **a -> b (primary)** | +1.25 [-0.50, +3.00] p=2.9e-05 |")
    text = "\n".join(lines)
    assert "<b>" not in text
    assert "&lt;b>x\\|y&lt;/b>" in text
    assert "](http" not in text.replace("\\](http", "")
    assert lines[0] == "# Study &lt;x>"
    assert lines[2] == "> **Warning.** EXPLORATORY: &lt;i>"


def test_numbers_are_told_from_words() -> None:
    assert numeric(TABLE) == {1, 2, 3}
    assert numeric(Table(title="", header=("a",), rows=[])) == set()


@pytest.mark.parametrize(
    "text", [HOSTILE, "a\\b", "~^_{}", "\x07bell", "é -- ---", "#1 100%", "`''\""]
)
def test_latex_commands_in_names_are_text(text: str) -> None:
    shown = latex([Table(title=text, header=(text, "b"), rows=[(text, text)])])
    assert shown.isascii()
    assert shown.isprintable() or "\n" in shown
    assert shown.count(r"\begin") == shown.count(r"\end") == 2


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.slow
def test_latex_compiles_and_fits_the_page(tmp_path: Path) -> None:
    odd = [
        HOSTILE,
        "\\end{document}",
        "a~b^c_d{e}",
        "é ± --- ``''",
        "%",
        "[x] (y)",
        "&",
        "<>|\"'",
    ]
    rows = [(f"{name} (main effect)", "+1.25 [-0.50, +3.00] p=0.2", name, "-0.1") for name in odd]
    wide = Table(title=odd[0], header=("a name", *odd[:3]), rows=rows, note=odd[1])
    (tmp_path / "table.tex").write_text(latex([TABLE, wide]), encoding="utf-8")
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\\usepackage[T1]{fontenc}"
        "\\begin{document}\\input{table}\\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
    assert "Overfull" not in done.stdout


@pytest.mark.parametrize(("text", "shown"), [
    ("# a -> b: x", "\\# a -> b: x"), ("- a", "\\- a"), ("1. x", "1\\. x"), ("> q", "\\> q"),
    ("12) y", "12\\) y"), ("+0.5 [0, 1]", "+0.5 [0, 1]"), ("-", "-"), ("1.5 seeds", "1.5 seeds"),
])  # fmt: skip
def test_a_sentence_is_no_heading_list_or_quotation(text: str, shown: str) -> None:
    page = markdown(Document(title="t", banner="", opening=[text], sections=[]))
    assert page.splitlines()[2] == shown
