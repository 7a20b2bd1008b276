"""LoRA, SSF, Adapter and VPT-Deep on a ViT, as training scripts published with papers have them.

Nothing of the harness is used: attention is written out (scores, softmax, dropout, product), every
method is a change to the ViT's own classes, the rest of the network is frozen by
``requires_grad_(False)``, and a step is the usual loop in float32 with the optimizer's defaults.
It is what the harness is timed against, and computes the same function from the same weights.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

# ------------------------------------------------------------------------------- the plain ViT


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def queries_keys_values(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def project(self, x: Tensor) -> Tensor:
        return self.proj(x)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.queries_keys_values(x)
        qkv = qkv.reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attention = (q @ k.transpose(-2, -1)) * self.scale
        attention = self.attn_drop(attention.softmax(dim=-1))
        x = (attention @ v).transpose(1, 2).reshape(batch, tokens, dim)
        return self.proj_drop(self.project(x))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.fc1(x)))
        return self.drop(self.fc2(x))


class Block(nn.Module):
    attention_class: type[Attention] = Attention
    mlp_class: type[Mlp] = Mlp

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = self.attention_class(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = self.mlp_class(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class PlainViT(nn.Module):
    """A ViT with a class token that the head reads.

    Class attributes:
        trained: pattern of the names of the method's parameters.
        names_in_harness: patterns that turn those names into the harness's, with replacements.
    """

    patch_embed_class: type[PatchEmbed] = PatchEmbed
    block_class: type[Block] = Block
    trained = ""
    names_in_harness: dict[str, str] = {}

    def __init__(self, timm_model: Any) -> None:
        """A network of the shape of ``timm_model``, which may carry the method already."""
        super().__init__()
        dim, first = timm_model.embed_dim, timm_model.blocks[0]
        heads, hidden = first.attn.num_heads, first.mlp.fc1.out_features
        self.patch_embed = self.patch_embed_class(dim, timm_model.patch_embed.patch_size[0])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros_like(timm_model.pos_embed))
        self.pos_drop = nn.Dropout(0.0)
        self.blocks = nn.ModuleList(
            self.block_class(dim, heads, hidden) for _ in range(len(timm_model.blocks))
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, timm_model.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.run_blocks(self.pos_drop(x + self.pos_embed))
        return self.head(self.final_norm(x)[:, 0])

    def run_blocks(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def final_norm(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def freeze(self) -> None:
        """Train the method and the head, nothing else."""
        for name, parameter in self.named_parameters():
            trained = name.startswith("head.") or re.search(self.trained, name)
            parameter.requires_grad_(bool(trained))

    def name_in_harness(self, name: str) -> str:
        for pattern, replacement in self.names_in_harness.items():
            name = re.sub(pattern, replacement, name)
        return name


# ------------------------------------------------------------------------------------- methods


class LoRAAttention(Attention):
    rank = 8

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.dim = dim
        self.lora_A_q = nn.Linear(dim, self.rank, bias=False)
        self.lora_B_q = nn.Linear(self.rank, dim, bias=False)
        self.lora_A_v = nn.Linear(dim, self.rank, bias=False)
        self.lora_B_v = nn.Linear(self.rank, dim, bias=False)

    def queries_keys_values(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        qkv[:, :, : self.dim] += self.lora_B_q(self.lora_A_q(x))
        qkv[:, :, -self.dim :] += self.lora_B_v(self.lora_A_v(x))
        return qkv


class LoRABlock(Block):
    attention_class = LoRAAttention


class LoRAViT(PlainViT):
    """Rank 8 on queries and values, scale 1."""

    block_class = LoRABlock
    trained = r"\.lora_"
    names_in_harness = {r"lora_([AB])_([qv])\.weight": r"qkv.delta.\1.\2"}


def scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * scale + shift


def add_pair(module: nn.Module, name: str, channels: int) -> None:
    """The parameters ``<name>_scale`` and ``<name>_shift``."""
    module.register_parameter(f"{name}_scale", nn.Parameter(torch.ones(channels)))
    module.register_parameter(f"{name}_shift", nn.Parameter(torch.zeros(channels)))


class SSFPatchEmbed(PatchEmbed):
    def __init__(self, dim: int, patch: int) -> None:
        super().__init__(dim, patch)
        add_pair(self, "proj", dim)

    def forward(self, images: Tensor) -> Tensor:
        return scale_and_shift(super().forward(images), self.proj_scale, self.proj_shift)


class SSFAttention(Attention):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        add_pair(self, "qkv", 3 * dim)
        add_pair(self, "proj", dim)

    def queries_keys_values(self, x: Tensor) -> Tensor:
        return scale_and_shift(self.qkv(x), self.qkv_scale, self.qkv_shift)

    def project(self, x: Tensor) -> Tensor:
        return scale_and_shift(self.proj(x), self.proj_scale, self.proj_shift)


class SSFMlp(Mlp):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(dim, hidden)
        add_pair(self, "fc1", hidden)
        add_pair(self, "fc2", dim)

    def forward(self, x: Tensor) -> Tensor:
        x = scale_and_shift(self.fc1(x), self.fc1_scale, self.fc1_shift)
        x = self.drop(self.act(x))
        return self.drop(scale_and_shift(self.fc2(x), self.fc2_scale, self.fc2_shift))


class SSFBlock(Block):
    attention_class = SSFAttention
    mlp_class = SSFMlp

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__(dim, heads, hidden)
        add_pair(self, "norm1", dim)
        add_pair(self, "norm2", dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(scale_and_shift(self.norm1(x), self.norm1_scale, self.norm1_shift))
        return x + self.mlp(scale_and_shift(self.norm2(x), self.norm2_scale, self.norm2_shift))


class SSFViT(PlainViT):
    """A pair after every linear, norm and convolution."""

    patch_embed_class = SSFPatchEmbed
    block_class = SSFBlock
    trained = r"_(scale|shift)$"
    names_in_harness = {r"_(scale|shift)$": r".delta.\1"}

    def __init__(self, timm_model: Any) -> None:
        super().__init__(timm_model)
        add_pair(self, "norm", timm_model.embed_dim)

    def final_norm(self, x: Tensor) -> Tensor:
        return scale_and_shift(self.norm(x), self.norm_scale, self.norm_shift)


class Adapter(nn.Module):
    bottleneck = 8

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, self.bottleneck)
        self.act = nn.GELU()
        self.up = nn.Linear(self.bottleneck, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.act(self.down(x)))


class AdapterBlock(Block):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__(dim, heads, hidden)
        self.adapter = Adapter(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.adapter(self.mlp(self.norm2(x)))


class AdapterViT(PlainViT):
    """Pfeiffer's placement: a bottleneck of 8 after the MLP, before the addition."""

    block_class = AdapterBlock
    trained = r"\.adapter\."
    names_in_harness = {r"\.adapter\.": ".mlp_out."}


class VPTDeepViT(PlainViT):
    """Ten prompts after the class token, replaced before every block."""

    length = 10
    trained = r"^prompts\."
    names_in_harness = {r"^prompts\.(\d+)$": r"blocks.\1.stream_in.prompts"}

    def __init__(self, timm_model: Any) -> None:
        super().__init__(timm_model)
        self.prompts = nn.ParameterList(
            torch.zeros(1, self.length, timm_model.embed_dim) for _ in self.blocks
        )
        self.prompt_dropout = nn.Dropout(0.0)

    def run_blocks(self, x: Tensor) -> Tensor:
        images_own = 1  # the first token of the image: after the class token and any prompts
        for block, prompts in zip(self.blocks, self.prompts, strict=True):
            prompts = self.prompt_dropout(prompts.expand(len(x), -1, -1))
            x = block(torch.cat([x[:, :1], prompts, x[:, images_own:]], dim=1))
            images_own = 1 + self.length
        return x


METHODS: dict[str, type[PlainViT]] = {
    "lora": LoRAViT,
    "ssf": SSFViT,
    "adapter": AdapterViT,
    "vpt_deep": VPTDeepViT,
}


def plain_like(method: str, attached_model: nn.Module) -> PlainViT:
    """The plain network that computes what ``attached_model`` does, with its weights.

    Args:
        method: one of :data:`METHODS`.
        attached_model: a timm ViT with that method attached by the harness.
    """
    model = METHODS[method](attached_model)
    state = attached_model.state_dict()
    names = model.state_dict()
    model.load_state_dict({name: state[model.name_in_harness(name)].clone() for name in names})
    model.freeze()
    return model.to(next(attached_model.parameters()).device)


class PlainStep:
    """A training step as in a plain script.

    Args:
        model: a network that is frozen already.
        images: normalised, ``(B, 3, H, W)``.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.model = model.train()
        self.images, self.labels = images, labels
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=1e-4)
        self.criterion = nn.CrossEntropyLoss()
        self.running_loss = 0.0

    def __call__(self) -> None:
        loss = self.criterion(self.model(self.images), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.running_loss += loss.item()
