from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ablate.training.zero_shot import TEMPLATES, accuracy, class_embeddings, read_folder
from blocks import UsageError

VECTORS = {"a cat": [3.0, 0.0], "one cat": [0.0, 0.5], "a dog": [-1.0, 0.0], "one dog": [-7.0, 0.0]}


def encode(prompts: list[str]) -> Tensor:
    return torch.tensor([VECTORS[prompt] for prompt in prompts])


def make_folder(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_templates_count_alike_whatever_their_embeddings_length() -> None:
    found = class_embeddings(encode, ["cat", "dog"], ["a {}", "one {}"])
    half = math.sqrt(1 / 2)
    torch.testing.assert_close(found, torch.tensor([[half, half], [-1.0, 0.0]]))


def test_the_ensemble_is_the_normalised_mean_of_unit_embeddings() -> None:
    def drawn(prompts: list[str]) -> Tensor:
        seeds = [sum(prompt.encode()) for prompt in prompts]
        rows = [torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows)

    names = ["owl", "steam engine"]
    for name, embedding in zip(names, class_embeddings(drawn, names), strict=True):
        raw = drawn([template.format(name) for template in TEMPLATES])
        mean = (raw / raw.norm(dim=1, keepdim=True)).mean(dim=0)
        torch.testing.assert_close(embedding, mean / mean.norm())


def test_half_precision_embeddings_are_averaged_in_single() -> None:
    found = class_embeddings(lambda prompts: encode(prompts).bfloat16(), ["cat"], ["a {}"])
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (["cat"], ["a {}", "a cat"], "needs a {} where the class name goes, got 'a cat'"),
        (["cat"], [], "0 templates"),
        ([], ["a {}"], "0 names"),
    ],
)
def test_errors_of_prompts(names: list[str], templates: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        class_embeddings(encode, names, templates)


def test_accuracy_where_the_ranks_are_known() -> None:
    # The images rank the six classes 0 1 2 3 4 5; the right ones stand at 1, 2, 5 and 6.
    images = torch.tensor([6.0, 5, 4, 3, 2, 1]).expand(4, 6)
    found = accuracy(images, torch.eye(6), torch.tensor([0, 1, 4, 5]), ks=(1, 2, 5, 6))
    assert found == {"zero_shot_top1": 0.25, "zero_shot_top2": 0.5,
                     "zero_shot_top5": 0.75, "zero_shot_top6": 1.0}  # fmt: skip


def test_a_k_above_the_number_of_classes_is_left_out() -> None:
    images = torch.tensor([[1.0, 0.0], [0.1, 2.0], [0.3, 0.2]])
    found = accuracy(images, torch.eye(2), torch.tensor([0, 1, 1]))
    assert found == {"zero_shot_top1": pytest.approx(2 / 3)}
    assert accuracy(images, torch.eye(2), torch.tensor([0, 1, 1]), ks=(5,)) == {}


def test_prompts_to_accuracy() -> None:
    classes = class_embeddings(encode, ["cat", "dog"], ["a {}", "one {}"])
    images = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [-3.0, 0.1]])
    assert accuracy(images, classes, torch.tensor([0, 1, 1]))["zero_shot_top1"] == 1
    assert accuracy(images, classes, torch.tensor([1, 0, 0]))["zero_shot_top1"] == 0


def test_no_image_to_classify() -> None:
    with pytest.raises(UsageError, match="no image to classify"):
        accuracy(torch.zeros(0, 2), torch.eye(2), torch.zeros(0, dtype=torch.long))


def test_a_folder_is_read_in_order(tmp_path: Path) -> None:
    root = make_folder(
        tmp_path, "steam_engine/2.JPG", "steam_engine/10.png", "owl/b.webp", "owl/a.jpeg",
        "owl/notes.txt", "owl/._a.jpeg", ".cache/x.jpg", "README.jpg",
    )  # fmt: skip
    files, labels, names = read_folder(root)
    expected = ["owl/a.jpeg", "owl/b.webp", "steam_engine/10.png", "steam_engine/2.JPG"]
    assert [str(file.relative_to(root)) for file in files] == expected
    assert labels == [0, 0, 1, 1]
    assert names == ["owl", "steam engine"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "two or more folders"),
        (["owl/a.jpg"], r"two or more folders.*got \['owl'\]"),
        (["an_owl/a.jpg", "an owl/a.jpg", "cat/a.jpg"], "each named after another class"),
        (["owl/a.jpg", "cat/a.txt"], "no image in .*cat"),
    ],
)
def test_errors_of_folders(files: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_folder(make_folder(tmp_path, *files))


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such directory: .*missing"):
        read_folder(tmp_path / "missing")
