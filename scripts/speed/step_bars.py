"""The bars on single steps: training steps and inference, on synthetic batches."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from speed.harness import Network, vit_b16
from speed.measure import Row, Settings, interleaved, ratios, timed
from speed.plain_methods import PlainStep, plain_like
from vpeft_bench.attaching.attachment import attach
from vpeft_bench.backbones import Backbone, block_map
from vpeft_bench.backbones.load import create
from vpeft_bench.cost.flops import count


def lora_vs_full(settings: Settings) -> list[Row]:
    """A LoRA training step takes about two thirds of one of full fine-tuning."""
    backbone = vit_b16(settings)
    sides = {
        name: timed(Network(settings, *backbone, f"method={method}").training(), settings)
        for name, method in {"LoRA": "lora", "full": "full"}.items()
    }
    found = interleaved(sides, settings.repeats)
    quantity = "time of LoRA / time of full"
    return [
        Row(
            "training step",
            quantity,
            ratios(found["LoRA"], found["full"]),
            at_most=settings.bar(0.72),
            sides=_in_seconds(found),
            note=f"batch {settings.batch_size}, fp32",
        )
    ]


def lora_vs_plain(settings: Settings) -> list[Row]:
    """The LoRA training step against one of a plain script."""
    return _vs_plain("lora", settings)


def ssf_vs_plain(settings: Settings) -> list[Row]:
    """The SSF training step against one of a plain script."""
    return _vs_plain("ssf", settings)


def adapter_vs_plain(settings: Settings) -> list[Row]:
    """The adapter training step against one of a plain script."""
    return _vs_plain("adapter", settings)


def vpt_deep_vs_plain(settings: Settings) -> list[Row]:
    """The VPT-Deep training step against one of a plain script."""
    return _vs_plain("vpt_deep", settings)


def bf16(settings: Settings) -> list[str]:
    """bfloat16 as the configuration for the device has it: ``hardware=cpu_bf16`` or ``gpu``."""
    on_cpu = settings.device.type == "cpu"
    return ["hardware.precision=bf16", *(["hardware.fused_attention=false"] if on_cpu else [])]


def _vs_plain(method: str, settings: Settings) -> list[Row]:
    overrides = [*vit_b16(settings), f"method={method}"]
    ours = Network(settings, *overrides)
    in_bf16 = Network(settings, *overrides, *bf16(settings))
    plain = plain_like(method, ours.attached.model)
    with torch.no_grad():
        difference = (ours.inference()() - plain.eval()(ours.normalized)).abs().max().item()
    if difference > 1e-3:
        raise RuntimeError(f"{method}: the plain network computes something else: {difference:.1e}")
    sides = {
        "plain fp32": timed(PlainStep(plain, ours.normalized, ours.labels), settings),
        "ours fp32": timed(ours.training(), settings),
        "ours bf16": timed(in_bf16.training(), settings),
    }
    found = interleaved(sides, settings.repeats)
    note = f"batch {settings.batch_size}; same weights, logits differ by at most {difference:.0e}"
    bars = {"ours fp32": settings.bar(1.0, on_gpu=1.0), "ours bf16": settings.bar(1.6, on_gpu=4.0)}
    return [
        Row(
            name,
            f"time of plain fp32 / time of {name}",
            ratios(found["plain fp32"], found[name]),
            at_least=bar,
            sides=_in_seconds({side: found[side] for side in ("plain fp32", name)}),
            note=note,
        )
        for name, bar in bars.items()
    ]


def gemm_share(settings: Settings) -> list[Row]:
    """How much of the machine's matrix-product rate the LoRA training step reaches."""
    overrides = [*vit_b16(settings), "method=lora"]
    operations = count(Network(settings, *overrides).training())
    rows = []
    for precision, dtype, bar in (("fp32", torch.float32, 80.0), ("bf16", torch.bfloat16, 70.0)):
        gemm, gemm_operations, shape = _fastest_gemm(settings, dtype)
        eager = [*overrides, *(bf16(settings) if precision == "bf16" else [])]
        compiled = {"compiled step": [*eager, "hardware.compile=true"]}
        steps = {"step": eager} | ({} if settings.quick else compiled)
        sides = {"GEMM": timed(gemm, settings)}
        for name, wanted in steps.items():
            sides[name] = timed(Network(settings, *wanted).training(), settings)
        found = interleaved(sides, settings.repeats)
        for name in steps:
            both = ratios(found["GEMM"], found[name])
            rows.append(
                Row(
                    f"{precision}, {name}",
                    f"rate of the {name} / rate of the fastest GEMM",
                    [100 * operations / gemm_operations * ratio for ratio in both],
                    unit="%",
                    at_least=settings.bar(bar) if name == "step" else None,
                    sides=_in_seconds({side: found[side] for side in ("GEMM", name)}),
                    note=f"batch {settings.batch_size}, {operations / 1e9:.4g} GFLOPs a step; "
                    f"GEMM of {' x '.join(map(str, shape))}: {gemm_operations / 1e9:.4g} GFLOPs",
                )
            )
    return rows


def _fastest_gemm(
    settings: Settings, dtype: torch.dtype
) -> tuple[Callable[[], Tensor], int, tuple[int, int, int]]:
    """The product with the highest rate, its operations, and its rows, depth and columns."""
    tokens, width = (settings.batch_size * 197, 768)
    cube = 2048
    if settings.quick:
        tokens, width, cube = 10, 192, 64
    shapes = [
        (tokens, width, 3 * width),
        (tokens, width, width),
        (tokens, width, 4 * width),
        (tokens, 4 * width, width),
        (cube, cube, cube),
    ]
    rates = {}
    for shape in shapes:
        measure = timed(_gemm(shape, dtype, settings.device), settings)
        seconds = statistics.median(measure() for _ in range(settings.repeats))
        rates[shape] = _operations(shape) / seconds
    fastest = max(rates, key=rates.__getitem__)
    return _gemm(fastest, dtype, settings.device), _operations(fastest), fastest


def _gemm(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> Callable[[], Tensor]:
    rows, depth, columns = shape
    x = torch.randn(rows, depth, dtype=dtype, device=device)
    weight = torch.randn(columns, depth, dtype=dtype, device=device)
    bias = torch.randn(columns, dtype=dtype, device=device)
    return lambda: nn.functional.linear(x, weight, bias)


def _operations(shape: tuple[int, int, int]) -> int:
    rows, depth, columns = shape
    return 2 * rows * depth * columns


def opened_vs_timm(settings: Settings) -> list[Row]:
    """Opened blocks and models with nothing placed against timm's own."""
    vit = "vit_tiny_patch16_224" if settings.quick else "vit_base_patch16_224"
    cases = [
        ("demo_vit", "vpeft_demo_vit", None, 32),
        ("ViT-B/16", vit, 32 if settings.quick else None, settings.batch_size),
    ]
    rows = []
    for title, name, side, batch in cases:
        plain = create(name, 10, side).to(settings.device)
        image_side = side or plain.patch_embed.img_size[0]  # type: ignore[union-attr,index]  # timm's
        images = torch.randn(batch, 3, image_side, image_side, device=settings.device)
        labels = torch.randint(10, (batch,), device=settings.device)
        models = {
            "timm": plain,
            "blocks opened": _opened(plain, _open_blocks),
            "model opened": _opened(plain, Backbone.open_trunk),
        }
        forwards = {n: timed(_inference(model, images), settings) for n, model in models.items()}
        found = {"forward": interleaved(forwards, settings.many_repeats)}
        trains = {
            n: timed(PlainStep(model, images, labels), settings) for n, model in models.items()
        }
        found["training step"] = interleaved(trains, settings.many_repeats)
        rows += [
            Row(
                f"{title}, {opened}, {what}",
                "time opened / time of timm",
                ratios(seconds[opened], seconds["timm"]),
                at_most=settings.bar(1.01),
                sides=_in_seconds({side: seconds[side] for side in ("timm", opened)}),
                note=f"batch {batch}, fp32",
            )
            for what, seconds in found.items()
            for opened in ("blocks opened", "model opened")
        ]
    return rows


def _opened(plain: nn.Module, open_: Callable[[Backbone], None]) -> nn.Module:
    """A copy that shares the weights, so that nothing but the classes differs."""
    model = copy.deepcopy(plain, {id(p): p for p in plain.parameters()})
    open_(block_map(model))
    return model


def _open_blocks(backbone: Backbone) -> None:
    for block in backbone.blocks:
        backbone.open_block(block)
        backbone.open_attention(block)


def _inference(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    model.eval()

    @torch.inference_mode()
    def infer() -> Tensor:
        return model(images)

    return infer


def merged_vs_plain(settings: Settings) -> list[Row]:
    """Inference with LoRA merged against the plain backbone."""
    name, side = ("vit_tiny_patch16_224", 32) if settings.quick else ("vit_base_patch16_224", 224)
    plain = create(name, 10, side).to(settings.device)
    merged = attach(copy.deepcopy(plain), "lora").merge()
    images = torch.randn(settings.batch_size, 3, side, side, device=settings.device)
    models = {"plain": plain, "merged": merged}
    sides = {n: timed(_inference(model, images), settings) for n, model in models.items()}
    found = interleaved(sides, settings.many_repeats)
    return [
        Row(
            "inference",
            "time merged / time plain",
            ratios(found["merged"], found["plain"]),
            at_most=settings.bar(1.02),
            sides=_in_seconds(found),
            note=f"batch {settings.batch_size}, fp32",
        )
    ]


# What is asked for, and whether that turns the option on; the default is the other way round.
OPTIONS = {
    "fused_attention": (["hardware.fused_attention=false"], False),
    "fused_optimizer": (["hardware.fused_optimizer=false"], False),
    "channels_last": (["hardware.channels_last=true"], True),
    "compile": (["hardware.compile=true"], True),
    "bf16": (["hardware.precision=bf16"], True),
    "bf16, attention in single steps": (
        ["hardware.precision=bf16", "hardware.fused_attention=false"],
        True,
    ),
}


def options(settings: Settings) -> list[Row]:
    """What each hardware option gains, alone, over the default."""
    overrides = [*vit_b16(settings), "method=lora"]
    asked = {name: more for name, (more, _) in OPTIONS.items()}
    if settings.quick:  # compiling takes longer than everything else
        del asked["compile"]
    networks = {
        name: Network(settings, *overrides, *more) for name, more in {"": [], **asked}.items()
    }
    steps = {name: timed(network.training(), settings) for name, network in networks.items()}
    trained = interleaved(steps, settings.repeats)
    inferences = {name: timed(network.inference(), settings) for name, network in networks.items()}
    inferred = interleaved(inferences, settings.repeats)
    rows = []
    for name in asked:
        for what, found in {"training step": trained, "inference": inferred}.items():
            if name == "fused_optimizer" and what == "inference":  # has nothing to do with it
                continue
            on, off = (found[name], found[""]) if OPTIONS[name][1] else (found[""], found[name])
            rows.append(
                Row(
                    f"{name}, {what}",
                    f"time without {name} / time with it",
                    ratios(off, on),
                    sides=_in_seconds({"without": off, "with": on}),
                    note=f"LoRA, batch {settings.batch_size}",
                )
            )
    return rows


def _in_seconds(found: dict[str, list[float]]) -> dict[str, list[float]]:
    return {f"{name} [s]": values for name, values in found.items()}


ITEMS = (
    lora_vs_full,
    lora_vs_plain,
    ssf_vs_plain,
    adapter_vs_plain,
    vpt_deep_vs_plain,
    gemm_share,
    opened_vs_timm,
    merged_vs_plain,
    options,
)
