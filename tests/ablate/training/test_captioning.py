from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import draw, png, shapes_rows, small, write_shard

from ablate.cli.command import main
from ablate.core.recipe import Recipe, with_fields
from ablate.core.trial import make_trial
from ablate.data import open_pairs, open_tokenizer
from ablate.data.batches import pad
from ablate.data.images import decode
from ablate.data.tokenizer import encode
from ablate.training.best_of import best_of, likelihood
from ablate.training.captioning import Captioner
from ablate.training.evaluate import evaluate_captions
from ablate.training.stages import run_trial
from assemblies import CoCa, Decoding, captioning_loss
from assemblies.checkpoint import save
from blocks import UsageError, default_registry

REGISTRY = default_registry()
LR = {"steps": 150, "batch": 32, "evaluate": 2, "evaluation_batch": 20, "lr": 0.004, "crop": 1.0}


@pytest.fixture(scope="module")
def trained(shapes: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a model that has learnt the drawn shapes' colours."""
    recipe = with_fields(Recipe(), {"data": shapes, **LR})
    fingerprint = open_pairs(shapes, 32).fingerprint
    job = make_trial("cell", small(), recipe, 0, fingerprint, REGISTRY)
    directory = tmp_path_factory.mktemp("trained")
    for _ in run_trial(job, directory, REGISTRY):
        pass
    return directory / "model"


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = []
    for i, colour in enumerate(("red", "green", "blue")):
        paths.append(tmp_path / f"{colour}.png")
        paths[-1].write_bytes(draw(colour, "square", 7 + i))
    return paths


def test_a_trained_model_names_what_it_sees(
    trained: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(trained), *map(str, pictures), "--json"]
    assert main(["caption", *arguments]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == [str(path) for path in pictures]
    for line, colour in zip(lines, ("red", "green", "blue"), strict=True):
        assert colour in line["caption"]


def test_the_best_of_draws_fits_better_than_a_draw(
    trained: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    captioner = Captioner.open(trained)
    shown = [decode(path.read_bytes(), 32) for path in pictures]
    draws = [captioner.caption(shown, Decoding(temperature=0.4, top_p=0.9, minimum=2, seed=seed))
             for seed in range(5)]  # fmt: skip
    chosen = best_of(captioner, shown, 5)
    assert all(text in [draw[i] for draw in draws] for i, text in enumerate(chosen))

    def value(texts: list[str]) -> torch.Tensor:
        similarity = (captioner.embed_images(shown) * captioner.embed_texts(texts)).sum(-1)
        scale = captioner.model.log_scale.detach().exp()
        return scale * similarity + likelihood(captioner, shown, texts)

    assert all((value(chosen) >= value(draw) - 1e-5).all() for draw in draws)
    arguments = ["--checkpoint", str(trained), *map(str, pictures), "--best-of", "5", "--json"]
    assert main(["caption", *arguments]) == 0
    said = [json.loads(line)["caption"] for line in capsys.readouterr().out.splitlines()]
    assert said == chosen
    assert main(["caption", *arguments, "--beams", "3"]) == 2
    assert "leave the other decoding options" in capsys.readouterr().err
    with pytest.raises(UsageError, match="draws must be at least 1"):
        best_of(captioner, shown, 0)


def test_likelihood_is_the_mean_over_tokens(trained: Path, pictures: list[Path]) -> None:
    captioner = Captioner.open(trained)
    shown = [decode(path.read_bytes(), 32) for path in pictures]
    texts = ["a red square", "green", "a blue bar number 9"]
    tokens, lengths = pad(encode(captioner.tokenizer, texts, 24), 24)
    images = torch.cat(list(captioner.batches(shown)))
    with torch.no_grad():
        states = captioner.model(images, tokens, lengths).states
    expected = [
        -captioning_loss(states[i : i + 1], captioner.model.head, tokens[i : i + 1],
                         lengths[i : i + 1]) for i in range(3)
    ]  # fmt: skip
    found = likelihood(captioner, shown, texts)
    torch.testing.assert_close(found, torch.stack(expected).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("flags", [
    [], ["--beams", "1"], ["--temperature", "0.8", "--top-k", "5", "--seed", "3"],
    ["--minimum", "4", "--maximum", "6"],
], ids=str)  # fmt: skip
def test_captions_do_not_depend_on_the_company(
    trained: Path, pictures: list[Path], flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(trained), *flags]
    assert main(["caption", *arguments, *map(str, pictures)]) == 0
    together = capsys.readouterr().out.splitlines()
    assert all(line.startswith(f"{p}: ") for p, line in zip(pictures, together, strict=True))
    assert main(["caption", *arguments, str(pictures[0])]) == 0
    assert capsys.readouterr().out.splitlines() == together[:1]


def test_a_bad_picture_is_named_and_the_others_are_captioned(
    trained: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pictures[1].write_bytes(b"no picture")
    missing = pictures[0].parent / "missing.png"
    status = main(["caption", "--checkpoint", str(trained), *map(str, [*pictures, missing])])
    found = capsys.readouterr()
    assert status == 1
    assert len(found.out.splitlines()) == 2
    assert f"error: {str(pictures[1])!r}: image cannot be decoded" in found.err
    assert f"error: {str(missing)!r}: No such file" in found.err


@pytest.mark.parametrize(("flags", "message"), [
    (["--checkpoint", "nowhere"], "'nowhere' is no checkpoint"),
    (["--top-p", "0.5"], "set a temperature above 0"),
    (["--beams", "3", "--temperature", "1"], "set temperature to 0"),
    (["--maximum", "99"], "maximum must be at most 23"),
])  # fmt: skip
def test_mistakes_are_one_line_and_exit_2(
    trained: Path, pictures: list[Path], flags: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(["caption", str(pictures[0]), "--checkpoint", str(trained), *flags]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_clip_cannot_caption(shapes: str, tmp_path: Path, pictures: list[Path]) -> None:
    model = CoCa(small("clip"))
    tokenizer = open_tokenizer(open_pairs(shapes, 32), 400)
    save(model.cell, model.state_dict(), tmp_path / "clip", tokenizer=tokenizer.to_str())
    with pytest.raises(UsageError, match="has no decoder"):
        Captioner.open(tmp_path / "clip").caption([np.zeros((32, 32, 3), np.uint8)])


def test_captions_are_scored_against_all_references(trained: Path, shapes: str) -> None:
    pairs = open_pairs(shapes, 32)
    found = evaluate_captions(Captioner.open(trained), pairs, "test")
    assert set(found) == {"bleu4", "rouge_l", "cider"}
    assert found["rouge_l"] > 0.5


def test_score_gives_what_the_trial_measured(
    trained: Path, shapes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(trained), "--data", shapes, "--batch", "20", "--json"]
    assert main(["score", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    record = json.loads((trained.parent / "result.json").read_text())["metrics"]
    for name, value in found.items():
        assert value == pytest.approx(record[f"test/{name}"], abs=1e-5), name
    assert "coca" not in found  # its weights are the recipe's
    assert "cider" in found


def test_a_set_of_one_split_can_be_scored(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = [(n, c.replace(b'"train"', b'"test"').replace(b'"val"', b'"test"'))
                for n, c in shapes_rows(60)]  # fmt: skip
    data = f"webdataset:{write_shard(tmp_path / 'held.tar', held_out)}"
    arguments = ["--checkpoint", str(trained), "--data", data, "--batch", "20"]
    assert main(["score", *arguments]) == 0
    assert "perplexity" in capsys.readouterr().out


def test_zero_shot_finds_the_colour(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for colour in ("red", "green", "blue"):
        (tmp_path / "classes" / colour).mkdir(parents=True)
        for i in range(6):
            path = tmp_path / "classes" / colour / f"{i}.png"
            path.write_bytes(draw(colour, ("square", "bar", "frame")[i % 3], 5 + i))
    arguments = ["--checkpoint", str(trained), "--zero-shot", str(tmp_path / "classes"), "--json"]
    assert main(["score", *arguments, "--template", "a {} square", "--template", "a {} bar"]) == 0
    assert json.loads(capsys.readouterr().out)["zero_shot_top1"] > 0.8
    (tmp_path / "classes/red/bad.png").write_bytes(b"no picture")
    assert main(["score", *arguments]) == 1
    found = capsys.readouterr()
    assert "zero_shot_top1" in found.out
    assert "bad.png': image cannot be decoded" in found.err


@pytest.mark.parametrize(("flags", "message"), [
    ([], "nothing to score"),
    (["--data", "embedded:pictures", "--split", "tset"], "did you mean 'test'"),
    (["--data", "embedded:picture"], "picture"),
    (["--data", "embedded:stamps", "--batch", "0"], "evaluation_batch must be at least 2"),
    (["--data", "embedded:stamps", "--split", ""], "no split named ''"),
    (["--zero-shot", "nowhere"], "no such directory"),
    (["--zero-shot", "nowhere", "--split", "val"], "--split and --batch are for --data"),
    (["--data", "embedded:pictures", "--template", "a {}"], "--template is for --zero-shot"),
])  # fmt: skip
def test_score_explains_mistakes(
    trained: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "--checkpoint", str(trained), *flags]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_embeddings_are_unit_vectors(trained: Path) -> None:
    captioner = Captioner.open(trained)
    black = np.zeros((32, 32, 3), np.uint8)
    assert png(black)
    images = captioner.embed_images([black] * 70)
    texts = captioner.embed_texts(["a red square"] * 70)
    for found in (images, texts):
        assert found.shape == (70, 32)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(70))
