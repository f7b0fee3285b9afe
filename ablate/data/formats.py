"""Reads pairs from one file that lists them all: COCO, Karpathy, Flickr30k, CSV and Parquet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow import ArrowException

from ablate.data.rows import Row, Source, file_row, make_row
from blocks import UsageError
from blocks.errors import unknown

# Looked for where none is named: what Hugging Face's datasets and img2dataset write.
IMAGE_COLUMNS = ("image", "jpg", "png", "webp")
CAPTION_COLUMNS = ("caption", "captions", "text", "txt")
SEPARATORS = {"comma": ",", "tab": "\t", "semicolon": ";", "bar": "|"}
ROWS_AT_ONCE = 64


def _listed(listing: Path, rows: list[Row]) -> Source:
    images = [row.image for row in rows if isinstance(row.image, Path)]
    return Source([listing, *images], lambda: iter(rows))


def open_coco(images: Path, annotations: Path) -> Source:
    """Return the pairs of MS-COCO's captions: all of an image's, by their id."""
    content = _read_json(annotations)
    captions: dict[Any, list[tuple[int, object]]] = {}
    rows = []
    for place, item in enumerate(_list_in(content, "annotations", annotations)):
        try:
            captions.setdefault(item["image_id"], []).append((int(item["id"]), item["caption"]))
        except (TypeError, KeyError, ValueError, OverflowError):
            rows.append(Row(f"annotation {place}", b"", [], problem="annotation cannot be read"))
    for place, item in enumerate(_list_in(content, "images", annotations)):
        try:
            texts = captions.pop(item["id"], [])
            name = item["file_name"]
        except (TypeError, KeyError):
            rows.append(Row(f"image {place}", b"", [], problem="image entry cannot be read"))
            continue
        ordered = [caption for _, caption in sorted(texts, key=lambda pair: pair[0])]
        rows.append(file_row(str(name), images, name, ordered, None))
    lost = "annotation of an image that is not listed (or listed twice)"
    rows += [Row(f"image {key}", b"", [], problem=lost) for key in captions]
    return _listed(annotations, rows)


def open_karpathy(images: Path, listing: Path) -> Source:
    """Return the pairs of Karpathy's JSON for COCO, Flickr30k or Flickr8k, with its splits."""
    rows, seen = [], set()
    for place, item in enumerate(_list_in(_read_json(listing), "images", listing)):
        try:
            name = "/".join(filter(None, (item.get("filepath"), item["filename"])))
            captions = [sentence["raw"] for sentence in item["sentences"]]
            row = file_row(name, images, name, captions, item.get("split"))
        except (AttributeError, TypeError, KeyError):
            row = Row(f"image {place}", b"", [], problem="image entry cannot be read")
        if row.image in seen:
            row = row._replace(image=b"", problem="key stands twice")
        elif not row.problem:
            seen.add(row.image)
        rows.append(row)
    return _listed(listing, rows)


def open_flickr30k(images: Path, listing: Path) -> Source:
    """Return the pairs of Kaggle's results.csv: ``name| number| caption``, blanks anywhere.

    Of the published file one line lacks its second bar; it is read as meant.
    """
    header, *lines = _lines(listing)
    if [part.strip() for part in header.split("|")][:1] != ["image_name"]:
        raise UsageError(
            f"{str(listing)!r} is no Flickr30k results.csv: its first line is {header[:60]!r}, not "
            "'image_name| comment_number| comment'"
        )
    captions: dict[str, list[tuple[int, str]]] = {}
    rows = []
    for place, line in enumerate(lines, start=2):
        match = re.fullmatch(r"([^|]+)\|\s*(\d+)\s*[|\s](.*)", line)
        if match:
            name, number, caption = match.groups()
            captions.setdefault(name.strip(), []).append((int(number), caption))
        elif line.strip():
            rows.append(Row(f"line {place}", b"", [], problem="line cannot be read"))
    for name, numbered in captions.items():
        ordered = [caption for _, caption in sorted(numbered, key=lambda pair: pair[0])]
        rows.append(file_row(name, images, name, ordered, None))
    return _listed(listing, rows)


def open_csv(path: Path, options: Mapping[str, str]) -> Source:
    """Return the pairs of a table; several lines of one image are its captions."""
    columns = [options[name] for name in ("image", "caption", "split") if name in options]
    directory = Path(options["images"]).expanduser() if "images" in options else path.parent
    if not directory.is_dir():
        raise UsageError(f"no directory {str(directory)!r} (images=DIR of {str(path)!r})")
    lines = _lines(path)
    separator = _separator(path, lines[0], columns, options.get("separator"))
    header = _cells(lines[0], separator)
    places = [header.index(name) for name in columns]
    images: dict[str, list[list[str]]] = {}
    rows = []
    for number, cells in _records(lines[1:], separator):
        if len(cells) == len(header):
            name, *rest = (cells[place].strip() for place in places)
            images.setdefault(name, []).append(rest)
        else:
            problem = "line cannot be read, or has more or fewer cells than the first"
            rows.append(Row(f"line {number}", b"", [], problem=problem))
    rows += [_table_row(name, directory, texts) for name, texts in images.items()]
    return _listed(path, rows)


def _table_row(name: str, directory: Path, cells: Sequence[Sequence[str]]) -> Row:
    captions = [caption for caption, *_ in cells]
    splits = {split for _, *rest in cells for split in rest}
    if len(splits) > 1:
        return Row(name, b"", [], problem="lines of one image name several splits")
    return file_row(name, directory, name, captions, next(iter(splits), None))


def _records(lines: Sequence[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Iterate over line numbers and cells, of which a line that cannot be read has none."""
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield reader.line_num + 1, []
        else:
            if cells:  # a blank line is no record
                yield reader.line_num + 1, cells


def _separator(path: Path, header: str, columns: Sequence[str], chosen: str | None) -> str:
    """Return the separator that is chosen, or else gives the first line the columns wanted."""
    if chosen is not None and chosen not in SEPARATORS:
        raise unknown("separator", chosen, SEPARATORS)
    candidates = list(SEPARATORS.values()) if chosen is None else [SEPARATORS[chosen]]
    best = max(candidates, key=lambda separator: len(_cells(header, separator)))
    for separator in candidates:
        if set(columns) <= set(_cells(header, separator)):
            return separator
    missing = next(name for name in columns if name not in _cells(header, best))
    raise unknown(f"column of {str(path)!r}", missing, _cells(header, best))


def _cells(header: str, separator: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([header], delimiter=separator), [])]
    except csv.Error:
        return []


def open_parquet(files: Sequence[Path], options: Mapping[str, str]) -> Source:
    """Return the pairs of Parquet files as Hugging Face's datasets or img2dataset write them."""
    return Source(files, lambda: (row for file in files for row in _parquet_rows(file, options)))


def _parquet_rows(file: Path, options: Mapping[str, str]) -> Iterator[Row]:
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            image = _column(file, "image", options, IMAGE_COLUMNS, names)
            caption = _column(file, "caption", options, CAPTION_COLUMNS, names)
            split = _column(file, "split", options, (), names) if "split" in options else None
            columns = [name for name in (image, caption, split) if name]
            number = 0
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=columns):
                for cells in batch.to_pylist():
                    yield _parquet_row(f"{file.name}:{number}", *(cells[name] for name in columns))
                    number += 1
    except UsageError:
        raise
    except (ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"Parquet file {str(file)!r} cannot be read: {reason}") from None


def _column(
    file: Path,
    what: str,
    options: Mapping[str, str],
    usual: Sequence[str],
    columns: Sequence[str],
) -> str:
    column = options.get(what) or next((name for name in usual if name in columns), what)
    if column not in columns:
        raise unknown(f"column of {str(file)!r} (choose one with {what}=COLUMN)", column, columns)
    return column


def _parquet_row(key: str, image: object, captions: object, split: object = None) -> Row:
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes):
        return Row(key, b"", [], problem="the image column holds no bytes")
    return make_row(key, content, captions, split)


def _lines(path: Path) -> list[str]:
    """Return a text file's lines; bytes that are no UTF-8 stay recognisable in their captions."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if not text.strip():
        raise UsageError(f"{str(path)!r} is empty")
    return text.split("\n")


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{str(path)!r} is no JSON: {str(error)[:80]}") from None


def _list_in(content: object, name: str, path: Path) -> list[Any]:
    if not isinstance(content, dict) or not isinstance(content.get(name), list):
        fields = content if isinstance(content, dict) else ()
        raise unknown(f"list in {str(path)!r}", name, map(str, fields))
    return list(content[name])
