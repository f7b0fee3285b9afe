from __future__ import annotations

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from samples import open_clip_state, small

from assemblies import CoCa, captioning_loss, contrastive_loss, with_field
from assemblies.interop import (
    CLIP_DEVIATION,
    CLIP_MEAN,
    for_plain_pixels,
    from_open_clip,
    to_open_clip,
)
from blocks import UsageError

LAYOUTS = {"coca_ViT-B-32": (32, 768, 512), "coca_ViT-L-14": (14, 1024, 768)}
SMALL = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 64, "layers": 2, "width": 192, "patch_size": 16,
        "attentional_pool": True, "attn_pooler_heads": 8, "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 12, "vocab_size": 300, "width": 128, "heads": 2, "layers": 2,
        "embed_cls": True, "output_tokens": True,
    },
    "multimodal_cfg": {
        "context_length": 12, "vocab_size": 300, "width": 128, "heads": 2, "layers": 2,
        "attn_pooler_heads": 8,
    },
}  # fmt: skip


def stand_in(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    modes = {"NEAREST": 0, "BILINEAR": 2, "BICUBIC": 3}  # of InterpolationMode, for defaults
    return type(name, (torch.nn.Module,), modes)


def open_clip_coca(name: str | None = None) -> torch.nn.Module:
    """Return open_clip's model, its uninitialised vocabulary head given finite weights.

    open_clip imports torchvision, whose wheels do not import beside this torch, for image
    transforms that a model does not need: empty modules stand in for it.
    """
    sys.modules.setdefault("timm", None)  # type: ignore[arg-type]  # optional there, and heavy
    for part in ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc"):
        module = types.ModuleType(f"torchvision{part}")
        module.__path__ = []
        module.__getattr__ = stand_in  # type: ignore[method-assign]
        sys.modules.setdefault(module.__name__, module)
        parent, _, own = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, sys.modules[module.__name__])
    pytest.importorskip("open_clip")
    from open_clip.coca_model import CoCa as Theirs
    from open_clip.factory import get_model_config

    torch.manual_seed(0)
    config = dict(get_model_config(name)) if name else dict(SMALL)
    config.pop("custom_text", None)
    model = Theirs(**config).eval()
    torch.nn.init.normal_(model.text_decoder.text_projection, std=0.05)
    for parameter in model.parameters():  # biases and gains that start at 0 and 1 hide mistakes
        if parameter.ndim < 2:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def batch(size: int, context: int, vocabulary: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(3, 3, size, size, generator=generator)
    lengths = torch.tensor([context, 5, context // 2])
    tokens = torch.randint(1, vocabulary, (3, context), generator=generator)
    return images, tokens.masked_fill(torch.arange(context) >= lengths[:, None], 0), lengths


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "correct"])
@pytest.mark.parametrize("name", [None, "coca_ViT-B-32"], ids=["small", "B-32"])
@torch.no_grad()
def test_import_computes_what_open_clip_does(name: str | None, legacy: bool) -> None:
    theirs = open_clip_coca(name)
    theirs.text.correct_cls_mask = not legacy
    ours = from_open_clip(theirs.state_dict(), legacy_cls_mask=legacy)
    cell = ours.cell
    images, tokens, lengths = batch(cell.image.size, cell.context, cell.vocabulary)
    out = ours(images, tokens, lengths)
    short = ours.encode_text(tokens[1:2, :8], lengths[1:2])  # less padding changes nothing
    torch.testing.assert_close(short, out.embeddings.text[1:2], atol=1e-4, rtol=1e-4)
    expected = theirs(images, tokens)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(out.embeddings.image, expected["image_features"], **close)
    torch.testing.assert_close(out.embeddings.text, expected["text_features"], **close)
    logits = (out.states @ ours.head.T)[:, :-1]
    torch.testing.assert_close(logits, expected["logits"], **close)

    scale = expected["logit_scale"]
    scores = scale * expected["image_features"] @ expected["text_features"].T
    target = torch.arange(3)
    contrastive = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
    got = contrastive_loss(out.embeddings, torch.arange(3))
    torch.testing.assert_close(got, contrastive, **close)
    caption = F.cross_entropy(
        expected["logits"].permute(0, 2, 1), expected["labels"], ignore_index=0
    )
    own = captioning_loss(out.states, ours.head, tokens, lengths)
    torch.testing.assert_close(own, caption, **close)


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [None, *LAYOUTS])
def test_export_gives_back_the_state_dict_exactly(name: str | None) -> None:
    state = open_clip_coca(name).state_dict()
    back = to_open_clip(from_open_clip(state))
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(back[key], tensor), key
        assert back[key].shape == tensor.shape, key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_is_exact(layout: str) -> None:
    state = open_clip_state(*LAYOUTS[layout])
    back = to_open_clip(from_open_clip(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_what_is_missing_or_unexpected_is_listed() -> None:
    state = open_clip_state(16, 128, 64)
    del state["text.ln_final.weight"]
    shaped = dict(open_clip_state(16, 128, 64))
    name = "text.transformer.resblocks.0.mlp.c_fc.weight"
    shaped[name] = shaped[name].T
    with pytest.raises(UsageError, match=r"c_fc.weight is \[64, 256\], must be \[256, 64\]"):
        from_open_clip(shaped)
    state["visual.extra"] = torch.zeros(1)
    with pytest.raises(
        UsageError, match=r"missing \['text.ln_final.weight'\], unexpected \['visual"
    ):
        from_open_clip(state)
    with pytest.raises(UsageError, match=r"no 'visual\.conv1\.weight'"):
        from_open_clip({})


def test_another_layout_cannot_be_exported() -> None:
    with pytest.raises(UsageError, match="open_clip's layout"):
        to_open_clip(CoCa(small()))
    cell = from_open_clip(open_clip_state(16, 128, 64)).cell
    for path, value in (("*.norm", "layernorm(eps=0.01)"), ("text.cls", "caption"),
                        ("image.ffn", "mlp(activation='relu')")):  # fmt: skip
        with pytest.raises(UsageError, match=r"open_clip's layout can be exported"):
            to_open_clip(CoCa(with_field(cell, path, value)))
    assert to_open_clip(CoCa(with_field(cell, "text.cls", "end")))


@torch.no_grad()
def test_plain_pixels_give_what_clips_scaling_gave() -> None:
    state = {name: 0.05 * tensor for name, tensor in open_clip_state(16, 128, 64).items()}
    model = from_open_clip(state)
    plain = for_plain_pixels(model)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))  # 0 .. 1
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_DEVIATION))
    expected = model.image.encode((pixels - mean) / deviation)
    got = plain.image.encode(2 * pixels - 1)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert model.image.patches.bias is None  # the model itself is left as it was
