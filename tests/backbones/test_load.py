"""Building a backbone with its weights."""

from __future__ import annotations

import timm
import torch

from vpeft_bench.backbones.load import load_backbone


def test_tokens_without_a_class_token_are_contiguous():
    """As timm leaves them they are not, to the same result."""
    plain = timm.create_model("vpeft_demo_vit", pretrained=True, num_classes=0)
    loaded = load_backbone("vpeft_demo_vit", "hub", num_classes=0).model
    strides: dict[str, bool] = {}
    for name, model in (("plain", plain), ("loaded", loaded)):
        model.get_submodule("blocks.3").register_forward_pre_hook(
            lambda module, inputs, name=name: strides.update({name: inputs[0].is_contiguous()})
        )
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), loaded.eval()(images))
    assert strides == {"plain": False, "loaded": True}
