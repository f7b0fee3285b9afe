"""Sources of image-caption pairs by URI: what may be written, and who reads it."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from braceexpand import braceexpand

from ablate.data.formats import open_coco, open_csv, open_flickr30k, open_karpathy, open_parquet
from ablate.data.rows import SPLITS, Row, Source
from ablate.data.shards import open_folder, open_shards
from blocks import UsageError
from blocks.errors import unknown

EMBEDDED = Path(__file__).parent / "embedded"
MAX_WEIGHT = 100
PART = re.compile(r"(?:(?P<split>[^=:*]*)=)?(?:(?P<weight>[^=:*]*)\*)?(?P<uri>.*)", re.DOTALL)


class Scheme(NamedTuple):
    """A kind of source: how it is written, and what opens the part behind the colon."""

    form: str
    open: Callable[[str], Source]


def open_source(uri: str) -> Source:
    """Return the source that a URI names; raises `UsageError` for what does not exist."""
    scheme, colon, rest = uri.partition(":")
    if not colon:
        names = embedded_names()
        hint = f"did you mean 'embedded:{uri}'? " if uri in names else ""
        forms = ", ".join(scheme.form for scheme in SCHEMES.values())
        raise UsageError(f"cannot read data {uri!r}; {hint}write one of {forms}")
    if scheme not in SCHEMES:
        raise unknown("kind of data source", scheme, SCHEMES)
    if not rest:
        raise UsageError(f"data {uri!r} names nothing; write {SCHEMES[scheme].form}")
    return SCHEMES[scheme].open(rest)


def embedded_names() -> list[str]:
    """Return the names of the sets that ship with the package."""
    return sorted(path.name.removesuffix("-64.tar.gz") for path in EMBEDDED.glob("*-64.tar.gz"))


def find_files(pattern: str) -> list[Path]:
    """Return the files that a pattern with {00..09} and * names, sorted."""
    text = str(Path(pattern).expanduser())
    if Path(text).is_file():  # whatever its name looks like
        return [Path(text)]
    try:
        pieces = list(braceexpand(text))
    except ValueError as error:
        raise UsageError(f"cannot expand {pattern!r}: {error}") from None
    files: set[Path] = set()
    for piece in pieces:
        matches = [Path(name) for name in glob.glob(piece, recursive=True)]
        if not matches and piece != text:
            raise UsageError(f"no file {piece!r} (of {pattern!r})")
        files.update(path for path in matches if path.is_file())
    if not files:
        raise UsageError(f"no file matches {pattern!r}")
    return sorted(files)


def _embedded(name: str) -> Source:
    if name not in embedded_names():
        raise unknown("embedded data set", name, embedded_names())
    return open_shards([EMBEDDED / f"{name}-64.tar.gz"])


def _two(opener: Callable[[Path, Path], Source], form: str) -> Callable[[str], Source]:
    """Return the opener of what is written as a directory of images, a comma, and a file."""

    def open_both(rest: str) -> Source:
        images, comma, listing = rest.rpartition(",")
        if not comma or not images or not listing:
            raise UsageError(f"got {rest!r}; write {form}")
        return opener(_directory(images), _file(listing))

    return open_both


def _csv(rest: str) -> Source:
    path, options = _options(rest, ("image", "caption", "split", "separator", "images"))
    for name in ("image", "caption"):
        if name not in options:
            raise UsageError(f"csv:{rest} does not say {name}=COLUMN; write {SCHEMES['csv'].form}")
    return open_csv(_file(path), options)


def _parquet(rest: str) -> Source:
    pattern, options = _options(rest, ("image", "caption", "split"))
    return open_parquet(find_files(pattern), options)


def _options(rest: str, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return what stands before ``?name=value&name=value``, and the options."""
    path, mark, query = rest.rpartition("?")
    if not mark or "=" not in query:  # the question mark of a pattern
        return rest, {}
    options: dict[str, str] = {}
    for text in query.split("&"):
        name, equals, value = text.partition("=")
        if name not in names:
            raise unknown("option", name, names)
        if not equals or not value or name in options:
            fault = "is given twice" if name in options else "has no value"
            raise UsageError(f"{name!r} {fault} in {rest!r}")
        options[name] = unquote(value)
    return path, options


def _mixture(rest: str) -> Source:
    parts = [_part(text.strip()) for text in rest.split(";") if text.strip()]
    if not parts:
        raise UsageError(f"data 'mixture:{rest}' names nothing; write {SCHEMES['mixture'].form}")
    files = [path for _, _, source in parts for path in source.files]

    def read() -> Iterator[Row]:
        for split, weight, source in parts:
            for row in source.read():
                yield row._replace(split=split or row.split, weight=weight)

    return Source(files, read)


def _part(text: str) -> tuple[str | None, int, Source]:
    """Return the split, weight and source of ``train=2*folder:/data``, a part of a mixture."""
    match = PART.fullmatch(text)
    assert match is not None, text
    split, weight, uri = match["split"], match["weight"], match["uri"]
    if split is not None and split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if uri.startswith("mixture:"):
        raise UsageError(f"a mixture cannot hold another one, got {uri!r}")
    number = int(weight) if weight and re.fullmatch(r"[0-9]{1,3}", weight) else 0
    if weight is not None and not 1 <= number <= MAX_WEIGHT:
        raise UsageError(
            f"a weight must be a whole number from 1 to {MAX_WEIGHT}, got {weight!r} in {text!r}; "
            "for 0.5 and 1 write 1 and 2"
        )
    if number and split in ("val", "test"):
        raise UsageError(f"a weight says how often training shows a pair; {text!r} trains nothing")
    return split, number or 1, open_source(uri)


def _directory(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_dir():
        raise UsageError(f"no directory {name!r}{_near(path)}")
    return path


def _file(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(f"no file {name!r}{_near(path)}")
    return path


def _near(path: Path) -> str:
    try:
        beside = os.listdir(path.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f"; did you mean {str(path.with_name(near[0]))!r}?" if near else ""


COCO = "coco:IMAGES,ANNOTATIONS.json"
KARPATHY = "karpathy:IMAGES,dataset_flickr30k.json"
FLICKR30K = "flickr30k:IMAGES,results.csv"
SCHEMES = {
    "embedded": Scheme("embedded:NAME", _embedded),
    "webdataset": Scheme("webdataset:PATTERN", lambda rest: open_shards(find_files(rest))),
    "coco": Scheme(COCO, _two(open_coco, COCO)),
    "karpathy": Scheme(KARPATHY, _two(open_karpathy, KARPATHY)),
    "flickr30k": Scheme(FLICKR30K, _two(open_flickr30k, FLICKR30K)),
    "csv": Scheme("csv:FILE?image=COLUMN&caption=COLUMN", _csv),
    "parquet": Scheme("parquet:PATTERN", _parquet),
    "folder": Scheme("folder:DIR", lambda rest: open_folder(_directory(rest))),
    "mixture": Scheme("mixture:2*URI;1*URI", _mixture),
}
