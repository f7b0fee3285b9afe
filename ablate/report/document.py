"""What a report consists of, whatever it looks like: see `ablate.report.render`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table of text; ``emphasised`` rows are the ones to look at first."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    emphasised: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure in the study's directory: ``stem.png``, and ``stem.svg`` where it is a drawing."""

    stem: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report; a ``folded`` one is for readers who want to know more."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Document:
    """A report: what was found in three sentences, then the evidence.

    ``banner`` is a warning that stands above everything, or nothing.
    """

    title: str
    banner: str
    opening: list[str]
    sections: list[Section]
