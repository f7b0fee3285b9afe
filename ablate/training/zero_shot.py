"""Zero-shot classification: an image belongs to the class whose prompts it resembles most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.data.rows import IMAGE_SUFFIXES
from blocks import UsageError

TEMPLATES = (
    "a picture of a {}.",
    "this picture shows a {}.",
    "a small picture of one {}.",
    "here one sees a {}.",
    "{}",
)


def class_embeddings(
    encode: Callable[[list[str]], Tensor],
    names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> Tensor:
    """Return a unit embedding per class, averaged over prompts [c d] (arXiv:2103.00020).

    ``encode`` turns prompts into embeddings [c d] of any length; it is called once per template,
    with one prompt per class name, which takes the place of ``{}``. Each prompt counts alike: its
    embedding is made a unit vector before the average, which is made one again.
    """
    if not names or not templates:
        raise UsageError(
            f"needs a class name and a template, got {len(names)} names, {len(templates)} templates"
        )
    for template in templates:
        if "{}" not in template:
            raise UsageError(f"a template needs a {{}} where the class name goes, got {template!r}")
    prompts = [[template.replace("{}", name) for name in names] for template in templates]
    units = torch.stack([F.normalize(encode(texts).float(), dim=-1) for texts in prompts])
    return F.normalize(units.mean(dim=0), dim=-1)  # [t c d] to [c d]


def accuracy(
    images: Tensor, classes: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """Return how often the right class is among the k nearest, ``zero_shot_top{k}``, 0 to 1.

    Embeddings of images [n d] and classes [c d], the classes' of unit length, are compared by
    their dot product (arXiv:2103.00020); labels [n] are rows of ``classes``. A k above the number
    of classes is left out.
    """
    if not len(images):
        raise UsageError("no image to classify, got embeddings of 0 images")
    assert len(images) == len(labels), (len(images), len(labels))
    assert 0 <= int(labels.min()) <= int(labels.max()) < len(classes), "a label without its class"
    assert all(k > 0 for k in ks), ks
    kept = [k for k in ks if k <= len(classes)]
    nearest = (images @ classes.T).topk(max(kept, default=0), dim=1).indices  # [n k]
    right = nearest == labels[:, None]  # at most one per row
    return {f"zero_shot_top{k}": float(right[:, :k].any(dim=1).double().mean()) for k in kept}


def read_folder(path: str | Path) -> tuple[list[Path], list[int], list[str]]:
    """Find a labelled set in ``DIR/CLASS_NAME/*.jpg``: image files, labels [n], class names [c].

    Folders and files are sorted by name, hidden ones left out; a folder's name with blanks for
    underscores is its class's name. Images end in .jpg, .jpeg, .png or .webp, in any case.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise UsageError(f"no such directory: {directory}")
    folders = sorted(p for p in directory.iterdir() if p.is_dir() and p.name[0] != ".")
    names = [folder.name.replace("_", " ") for folder in folders]
    if len(set(names)) < max(2, len(names)):
        raise UsageError(
            f"{directory} needs two or more folders, each named after another class, got {names}"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        pictures = sorted(p for p in folder.iterdir() if _is_image(p))
        if not pictures:
            raise UsageError(f"no image in {folder} (known: .{', .'.join(IMAGE_SUFFIXES)})")
        files += pictures
        labels += [label] * len(pictures)
    return files, labels, names


def _is_image(path: Path) -> bool:
    return path.name[0] != "." and path.suffix.lower().removeprefix(".") in IMAGE_SUFFIXES
