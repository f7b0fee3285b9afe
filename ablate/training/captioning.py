"""A checkpoint put to use: pictures in, captions out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ablate.data.batches import pad, to_floats
from ablate.data.images import Pixels, Undecodable, decode
from ablate.data.tokenizer import encode, marks_of, read_tokenizer
from assemblies import CoCa, Decoding, generate, load
from assemblies.checkpoint import TOKENIZER
from blocks import Registry

BATCH = 64
# Of greedy and beams of 4 and 8 with four penalties, the best CIDEr on validation (docs/log.md).
SEARCH = Decoding(beams=8, length_penalty=0.7, minimum=2)


def read_picture(path: Path, size: int) -> Pixels | str:
    """Return a picture [s s 3] from a file, or why there is none."""
    try:
        return decode(path.read_bytes(), size)
    except OSError as error:
        return error.strerror or "cannot be read"
    except Undecodable as reason:
        return str(reason)


class Captioner:
    """A model with its tokenizer, on the best device there is."""

    def __init__(self, model: CoCa, tokenizer: Tokenizer) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.tokenizer = model.to(self.device).eval(), tokenizer
        self.marks = marks_of(tokenizer)

    @classmethod
    def open(cls, directory: Path, registry: Registry | None = None) -> Captioner:
        """Return the captioner of a checkpoint folder; raises `UsageError` that says what lacks."""
        model = load(directory, registry=registry)
        return cls(model, read_tokenizer(directory / TOKENIZER, model.cell.vocabulary))

    @property
    def size(self) -> int:
        """Return the side of the model's images in pixels."""
        return self.model.cell.image.size

    def caption(self, images: Sequence[Pixels], decoding: Decoding | None = None) -> list[str]:
        """Return a caption for each of some pictures [s s 3]."""
        said: list[str] = []
        for batch in self.batches(images):
            tokens, lengths, _ = generate(
                self.model, batch, marks=self.marks, decoding=decoding, first=len(said)
            )
            rows = zip(tokens.tolist(), lengths.tolist(), strict=True)
            # The begin mark is no word, and the end mark may be missing at the longest length.
            ids = [[i for i in row[1:length] if i != self.marks.end] for row, length in rows]
            said += [text.strip() for text in self.tokenizer.decode_batch(ids)]
        return said

    @torch.no_grad()
    def embed_images(self, images: Sequence[Pixels]) -> Tensor:
        """Return unit embeddings [n d] of some pictures [s s 3]."""
        return torch.cat([self.model.encode_image(b).float().cpu() for b in self.batches(images)])

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit embeddings [n d] of some texts."""
        parts = []
        for start in range(0, len(texts), BATCH):
            ids = encode(self.tokenizer, texts[start : start + BATCH], self.model.cell.context)
            tokens, lengths = pad(ids, self.model.cell.context)
            parts.append(self.model.encode_text(tokens.to(self.device), lengths.to(self.device)))
        return torch.cat(parts).float().cpu()

    def batches(self, images: Sequence[Pixels]) -> Iterator[Tensor]:
        """Iterate over pictures [s s 3] as batches of images [b 3 s s]."""
        for start in range(0, len(images), BATCH):
            pixels = np.stack([np.asarray(image) for image in images[start : start + BATCH]])
            yield to_floats(torch.from_numpy(pixels)).to(self.device)
