"""The inks of figures and pages, for light and dark, and how a figure becomes files.

Hues differ for all common kinds of colour blindness (blue against vermilion; other lines after
Paul Tol's muted scheme), and no figure tells by hue alone: verdicts have words and markers.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablate.core.files import atomic

P = ParamSpec("P")
R = TypeVar("R")
# By name: on white, on near-black. Figures are drawn with the first; a page that shows one inline
# puts its style sheet's variables in their place (`ablate.report.render`), so no two may be equal.
INKS = {
    "paper": ("#ffffff", "#15181c"),
    "ink": ("#1c2024", "#e4e7ea"),
    "muted": ("#59626c", "#a0a9b2"),
    "line": ("#d8dce0", "#3a4047"),
    "zone": ("#e9edf1", "#262c33"),
    "improved": ("#0b5fa5", "#73b7f2"),
    "worse": ("#b03f0a", "#f39a63"),
    "candidate": ("#7d2f91", "#d596e3"),
    "series-1": ("#3a2f9a", "#9d94f0"),
    "series-2": ("#1b7a3d", "#63c383"),
    "series-3": ("#8a8420", "#cdc763"),
    "series-4": ("#c65a6c", "#ea95a2"),
    "series-5": ("#2f9484", "#72d2c2"),
    "series-6": ("#86265a", "#dd78aa"),
    "series-7": ("#2f86b3", "#87c8ea"),
    "series-8": ("#94622c", "#d3a16c"),
}
PAPER, INK, MUTED, LINE, ZONE, IMPROVED, WORSE, CANDIDATE, *SERIES = (
    light for light, _ in INKS.values()
)
STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # names come from users; a dollar sign is no formula
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
}
# Of an SVG: text stays text, and the same figure is the same file.
SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "coca-blocks"}


def verdict_ink(verdict: str) -> str:
    """Return the ink of a verdict's words and marks."""
    return {"improved": IMPROVED, "worse": WORSE, "equivalent": INK}.get(verdict, MUTED)


def verdict_mark(verdict: str) -> dict[str, Any]:
    """Return how a verdict's point is drawn: filled, square, or hollow where nothing is clear."""
    ink = verdict_ink(verdict)
    clear = verdict in ("improved", "worse", "equivalent")
    return {
        "marker": "s" if verdict == "equivalent" else "o",
        "markersize": 5.5,
        "markeredgewidth": 1.4,
        "markeredgecolor": ink,
        "markerfacecolor": ink if clear else PAPER,
    }


class Drawing(Figure):
    """A figure that notebooks show by themselves, whatever backend they have."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with quiet():
            self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def with_style(draw: Callable[P, R]) -> Callable[P, R]:
    """Make a function draw in our style, whatever the caller's settings are."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.style.context(STYLE, after_reset=True):
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float) -> Drawing:
    """Return an empty figure of so many inches."""
    return Drawing(figsize=(width, height), layout="constrained", facecolor=PAPER)


def despine(panel: Axes, axis: str) -> None:
    """Take from a panel what its lines along ``axis`` say better."""
    panel.grid(axis=axis)  # type: ignore[arg-type]
    bare = "y" if axis == "x" else "x"
    panel.tick_params(axis="both", length=0)
    panel.spines["left" if bare == "y" else "bottom"].set_visible(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Let pass in silence that the font lacks a sign of some user's name; it shows as a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG on white, or as SVG on nothing, by the path's suffix."""
    is_svg = path.suffix == ".svg"
    chosen: dict[str, Any] = {"transparent": True, "metadata": {"Date": None}} if is_svg else {}
    # A fixed salt and no date: the same figure is the same file, so that reports can be compared.
    with atomic(path) as temporary, mpl.rc_context(SVG), quiet():
        figure.savefig(temporary, format=path.suffix[1:], dpi=140, **chosen)
    return path


def save_all(drawings: Mapping[str, Callable[[], Drawing | None]], folder: Path) -> list[Path]:
    """Draw figures and write each as PNG and SVG under its name; returns their paths.

    Those of an earlier report that there is nothing to show in any more are removed.
    """
    paths = []
    for stem, draw in drawings.items():
        figure = draw()
        for path in (folder / f"{stem}.png", folder / f"{stem}.svg"):
            if figure is None:
                path.unlink(missing_ok=True)
            else:
                paths.append(save(figure, path))
    return paths
