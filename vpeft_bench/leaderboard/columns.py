"""The columns of all tables: one list for the terminal, CSV, Markdown, LaTeX, JSON and the docs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from vpeft_bench.formats import GIGA, KIB, MIB, fraction, percent
from vpeft_bench.leaderboard.column import Column, In, Once, if_known, in_unit, number, text, whole
from vpeft_bench.metric_names import METRICS, heading

# ---- what several tables have --------------------------------------------------------------------

_NOT_IN_PRINT = In.FILES | In.PAGES
"""Of columns for which a terminal has no room."""
_PROTOCOL = (
    text("protocol", "`final` scores test images, `select` validation images"),
    text("split", "the images that were scored"),
)
NAME = text(
    "name", "the row: its variant's name, or the method and what of its options is not default"
)
VARIANT = text("variant", "name of the [variant](variants.md), where the runs are of one")
SHOWN_NAME = (
    text("shown_name", "", "variant", In.READERS, left=True),
    text("shown_method", "", "method", In.READERS, left=True),
    text("shown_options", "", "options", In.READERS, left=True),
)
_ENTRY = (
    NAME,
    VARIANT,
    text("method", "name of the method"),
    text("options", "its options; those of a variant may differ between data sets"),
    *SHOWN_NAME,
    text("backbone", "name of the backbone", "backbone", In.ALL, once=Once.SAME, left=True),
    text("weights", "pretrained, demo, random or unknown"),
    text("weights_fingerprint", "hash of the weights; empty for random ones"),
    text("shown_weights", "", "weights", In.READERS, once=Once.SAME, left=True),
    text(
        "normalization",
        "name of the normalisation",
        "normalization",
        In.ALL,
        once=Once.SAME,
        left=True,
    ),
    text("precision", "arithmetic of the training", "precision", In.ALL, once=Once.SAME, left=True),
    text(
        "per_class",
        "pictures of each class that were trained on; empty: all",
        "per class",
        In.ALL,
        once=Once.SAME,
    ),
)
_FROM_VARIANT = (
    text(
        "chosen",
        "how rate, decay and options were chosen: by which recipe or variant, by hand, or untuned",
        "chosen",
        In.ALL,
        once=Once.SAME,
        left=True,
        shown=lambda chosen: (chosen or "").partition(", ")[0],
    ),
    whole(
        "tuning_budget",
        "points that `tune` tried to find the settings",
        "budget",
        In.ALL,
        shown=if_known,
    ),
    text("tuning_space", "hash of what was searched, and in which order"),
    whole(
        "tuning_failed",
        "points of them that have no score",
        "failed points",
        In.ALL,
        shown=if_known,
    ),
    number("tuning_seconds", "recorded seconds of all points", "tuning s", In.ALL, shown=if_known),
    text("tuning_device", "where the points ran"),
)
_DEPARTS = (
    text("departs", "what else the row does otherwise than most rows of the table"),
    text("shown_departs", "", "departs", In.READERS, left=True),
)
_LABELS = text(
    "labels", "what the runs say of themselves", "notes", In.ALL, once=Once.SAME, left=True
)
_SCORES = (
    number(
        "ppt",
        "[score](leaderboard.md#scores) of metric and parameters, a fraction",
        "PPT",
        In.ALL,
        shown=fraction,
        once=Once.NEVER,
    ),
    number(
        "pscp_style",
        "[score](leaderboard.md#scores) of metric and costs, a fraction",
        "PSCP style",
        In.ALL,
        shown=fraction,
        once=Once.NEVER,
    ),
    text("score_constants", "the constants of both scores"),
)
_CARD = (
    number(
        "card_train_step_ms_median",
        "time of a training step",
        "card step ms",
        In.ALL,
        unit="ms",
        digits=None,
    ),
    number(
        "card_train_step_images_per_second",
        "training images over training time",
        "card images/s",
        In.ALL,
        unit="1/s",
        digits=None,
    ),
    whole(
        "card_train_step_flops_per_image",
        "operations of a training step",
        "card GFLOPs",
        In.ALL,
        shown=in_unit(GIGA),
    ),
    whole("card_peak_allocated_bytes", "peak of a training step on an accelerator", unit="bytes"),
    whole(
        "card_peak_resident_growth_bytes",
        "the same on a CPU: growth of resident memory",
        unit="bytes",
    ),
    whole("card_peak", "", "card peak MiB", In.READERS, shown=in_unit(MIB)),
    text("card_device", "where the card was measured"),
    whole("card_batch_size", "images of its training step"),
    text("card_id", "which card it is"),
)


def cell_columns(
    metrics: Iterable[str], headlines: Iterable[str], with_cards: bool
) -> list[Column]:
    """Of a table with one row per configuration and data set.

    Args:
        metrics: every metric that some run has.
        headlines: those that data sets are ranked by.
        with_cards: whether any row has a cost card.
    """
    ranked = sorted(set(headlines))
    score = heading(ranked[0]) if len(ranked) == 1 else "value"
    # One kind of timing per table: where a card says what training costs, the runs' own are left
    # to the files.
    own = _NOT_IN_PRINT if with_cards else In.ALL
    return [
        text("benchmark", "benchmark of the data set; `custom` for a user's own"),
        text("data", "name of the data set", "data", In.ALL, once=Once.SAME, left=True),
        *_PROTOCOL,
        text("shown_data_fingerprint", "", "data version", In.READERS, left=True),
        text("shown_image_format", "", "pictures", In.READERS),
        *_ENTRY,
        *_FROM_VARIANT,
        *_DEPARTS,
        text(
            "head",
            "the dense head; empty for classification",
            "head",
            In.ALL,
            once=Once.SAME,
            left=True,
        ),
        text("config_hash", "the whole configuration, see [records](records.md)"),
        text("shown_config", "", "config", In.READERS, left=True),
        text("metric", "the headline metric: what runs on the data set are ranked by"),
        text("shown_metric", "", "metric" if len(ranked) > 1 else "", In.READERS),
        text("shown_score", "", score, In.READERS),
        number("mean", "its mean over the runs that finished, at the last epoch", unit="metric's"),
        number(
            "std",
            "sample deviation, which divides by n - 1; none for one run",
            "± std",
            In.ALL,
            unit="metric's",
            shown=percent,
            once=Once.NEVER,
        ),
        whole("n", "runs that finished", "n", In.ALL, shown=str, once=Once.NEVER),
        number(
            "ci_low",
            "lower end of the mean's 95 % interval, Student's t over seeds; none for one run",
            unit="metric's",
        ),
        number("ci_high", "upper end of the same", unit="metric's"),
        number("min", "the smallest value", unit="metric's"),
        number("max", "the largest value", unit="metric's"),
        text("seeds", "seeds of the runs that finished"),
        *(_metric_mean(name, ranked) for name in metrics),
        whole(
            "parameters_method", "trained by the method, the largest of its runs", "params", In.ALL
        ),
        whole("parameters_head", "trained in the head", "head params", _NOT_IN_PRINT),
        whole("parameters_total", "both"),
        whole(
            "stored_delta_bytes",
            "size of the delta checkpoint",
            "delta KiB",
            _NOT_IN_PRINT,
            unit="bytes",
            shown=in_unit(KIB),
        ),
        number("train_seconds_mean", "the runs' own, incidental timing", "train s", own, unit="s"),
        number("train_images_per_second_mean", "the same", "images/s", own, unit="1/s"),
        whole(
            "peak_memory_bytes_max",
            "the same; of an accelerator",
            "peak MiB",
            own,
            unit="bytes",
            shown=in_unit(MIB),
        ),
        text("device", "where the runs were made"),
        *_scores(with_cards),
        *_card(with_cards),
        text("data_fingerprint", "the data that were read, the pixels of a sample included"),
        text("image_format", "`jpeg`, `png`, ...; `array` where pictures are rendered"),
        whole("failed", "runs that did not finish"),
        text("failed_reasons", "how and why"),
        text("not_finished", "", "not finished", In.READERS),
        _LABELS,
    ]


def summary_columns(
    means: Iterable[str], datasets: Iterable[str], with_cards: bool, scored: bool = True
) -> list[Column]:
    """Of a table with one row per entry: the means of a benchmark, and its data sets."""
    scores = _scores(with_cards) if scored else [replace(c, where=In.FILES) for c in _SCORES]
    return [
        text("number", "", "#", In.TERMINAL),
        *_PROTOCOL,
        *_ENTRY,
        *_FROM_VARIANT,
        *_DEPARTS,
        whole(
            "parameters_method", "trained by the method, the largest of its runs", "params", In.ALL
        ),
        *(
            number(
                name,
                "over data sets, none unless each has a value",
                name,
                In.ALL,
                unit="metric's",
                shown=percent,
                once=Once.NEVER,
            )
            for name in means
        ),
        text("complete", "how many data sets have a value, out of how many", "complete", In.ALL),
        *scores,
        *(
            replace(c, where=c.where & ~In.TERMINAL) if c.key.endswith("per_second") else c
            for c in _card(with_cards)
        ),
        *(
            column
            for name in datasets
            for column in (
                number(name, "mean on that data set; none where `cells` says why", unit="metric's"),
                text(f"shown {name}", "", name, In.PAGES),
            )
        ),
        text("cells", "data sets without a value or with runs that did not finish, and why"),
        _LABELS,
    ]


def run_columns(metrics: Iterable[str]) -> list[Column]:
    """Of a table with one row per run."""
    return [
        text("run_id", "names the run"),
        text("benchmark", "benchmark of the data set"),
        text("group", "group of the data set in its benchmark"),
        text("data", "name of the data set"),
        *_PROTOCOL,
        NAME,
        VARIANT,
        text("method", "name of the method"),
        text("options", "its options"),
        *(column for column in _ENTRY if column.key in _OF_A_RUN),
        *_FROM_VARIANT,
        text("head", "the dense head; empty for classification"),
        text("config_hash", "the whole configuration, see [records](records.md)"),
        whole("seed", "of the run"),
        text("status", "`ok`, `failed`, `oom`, `interrupted` or `diverged`"),
        text("error", "what ended it"),
        text("metric", "the headline metric"),
        number("value", "its value at the last epoch", unit="metric's"),
        whole("epoch", "epochs completed by then"),
        whole("images", "images scored"),
        *(
            number(f"metric_{name}", "that metric at the last epoch", unit="metric's")
            for name in metrics
        ),
        number("train_loss", "mean loss of the last epoch"),
        whole("parameters_method", "trained by the method"),
        whole("parameters_head", "trained in the head"),
        whole("parameters_total", "both"),
        whole("stored_delta_bytes", "size of the delta checkpoint", unit="bytes"),
        number("train_seconds", "training, without evaluation", unit="s"),
        number("train_images_per_second", "training images over training time", unit="1/s"),
        whole("peak_memory_bytes", "of an accelerator", unit="bytes"),
        text("device", "where the run was made"),
        text("data_fingerprint", "the data that were read"),
        text("image_format", "`jpeg`, `png`, ...; `array` where pictures are rendered"),
        text("labels", "what the run says of itself"),
    ]


_OF_A_RUN = {
    "backbone",
    "weights",
    "weights_fingerprint",
    "normalization",
    "precision",
    "per_class",
}


def _metric_mean(name: str, headlines: Sequence[str]) -> Column:
    """The mean of a metric; readers see it beside the headlines that it says more of."""
    key, what = f"{name}_mean", "mean of that metric over the runs that finished"
    if name not in METRICS or not set(METRICS.get(name).beside) & set(headlines):
        return number(key, what, unit="metric's")
    where = _NOT_IN_PRINT if name == _LONG else In.ALL
    return number(key, what, heading(name), where, unit="metric's", shown=percent, once=Once.NEVER)


_LONG = "mean_per_class_accuracy"
"""Beside top-1, with nearly the same value: left to the files where columns are few."""


def _scores(with_cards: bool) -> list[Column]:
    return [
        replace(column, where=In.FILES) if column.key == "pscp_style" and not with_cards else column
        for column in _SCORES
    ]


def _card(with_cards: bool) -> list[Column]:
    return [
        column if with_cards else replace(column, where=column.where & In.FILES) for column in _CARD
    ]


_TIMINGS = {
    "train_step": "a training step",
    "inference": "inference",
    "merged_inference": "inference with the method folded in",
}
_QUARTILES = {
    "median": "median",
    "q1": "first quartile",
    "q3": "third quartile",
    "iqr": "their difference",
}
_IN_PRINT = {
    "train_step_ms_median": "step ms",
    "train_step_ms_iqr": "IQR ms",
    "train_step_images_per_second": "images/s",
    "inference_images_per_second": "infer images/s",
    "merged_inference_images_per_second": "merged images/s",
}


def _timing(name: str, what: str) -> list[Column]:
    def column(key: str, says: str, unit: str) -> Column:
        title = _IN_PRINT.get(key, "")
        return number(key, says, title, In.ALL if title else In.FILES, unit=unit, digits=None)

    return [
        *(
            column(f"{name}_ms_{q}", f"of {what}: {says} over blocks of steps", "ms")
            for q, says in _QUARTILES.items()
        ),
        column(f"{name}_images_per_second", f"of {what}: of the median", "1/s"),
    ]


def cost_columns() -> list[Column]:
    """Of a table with one row per cost card."""
    exact: dict[str, Any] = {"digits": None}
    return [
        text("card_id", "names the card"),
        text("method", "what was measured", "method", In.ALL, left=True),
        text("options", "options of the method"),
        text("shown_options", "", "options", In.READERS, left=True),
        text("backbone", "name of the backbone", "backbone", _NOT_IN_PRINT),
        text("network", "what of the backbone decides its cost"),
        text(
            "resolution",
            "height and width; `own resolution` is that of the weights",
            "resolution",
            _NOT_IN_PRINT,
        ),
        text("precision", "arithmetic", "precision", _NOT_IN_PRINT),
        text("device", "name of the device"),
        text("shown_device", "", "device", In.PAGES),
        text("device_kind", "`cpu` or `cuda`"),
        whole("device_threads", "threads that the tensor library computed with"),
        text("device_driver", "driver of an accelerator"),
        number("device_power_limit_watts", "of an accelerator", unit="W", **exact),
        text("device_busy", "what else used the device"),
        whole(
            "batch_size",
            "images per training step",
            "batch",
            _NOT_IN_PRINT,
            shown=str,
            once=Once.NEVER,
        ),
        text("setting", "everything else that was asked of the measurement"),
        text("shown_hardware", "", "hardware", In.READERS, once=Once.SAME, left=True),
        text("shown_setting", "", "setting", In.PAGES),
        text(
            "status",
            "how it ended; a card that is not `ok` has an error and no number",
            "status",
            In.ALL,
            once=Once.SAME,
            left=True,
        ),
        whole("parameters_method", "trained by the method", "params", In.ALL),
        whole("parameters_head", "trained in the head", "head params", _NOT_IN_PRINT),
        whole("parameters_total", "both", "all params", _NOT_IN_PRINT),
        whole("parameters_model", "of the model, trained or frozen"),
        whole(
            "stored_delta_bytes",
            "size of the delta checkpoint",
            "stored KiB",
            _NOT_IN_PRINT,
            unit="bytes",
            shown=in_unit(KIB),
        ),
        whole(
            "forward_flops_per_image",
            "floating-point operations; a multiplication and an addition are two",
            "GFLOPs fwd",
            In.ALL,
            shown=in_unit(GIGA),
        ),
        whole(
            "train_step_flops_per_image",
            "forward and backward",
            "GFLOPs step",
            In.ALL,
            shown=in_unit(GIGA),
        ),
        whole("plain_forward_flops_per_image", "of the backbone alone, counted"),
        whole("closed_form_forward_flops_per_image", "of the backbone alone, by its formula"),
        *(column for name, what in _TIMINGS.items() for column in _timing(name, what)),
        whole("peak_allocated_bytes", "peak of a training step on an accelerator", unit="bytes"),
        whole("peak_reserved_bytes", "what the allocator holds", unit="bytes"),
        whole(
            "peak_resident_growth_bytes",
            "on a CPU instead: growth of resident memory",
            unit="bytes",
        ),
        text("shown_allocated", "", "allocated MiB", In.READERS),
        text("shown_reserved", "", "reserved MiB", In.PAGES),
        text("shown_resident", "", "resident MiB", In.READERS),
        whole(
            "weights_bytes",
            "of the peak",
            "weights MiB",
            _NOT_IN_PRINT,
            unit="bytes",
            shown=in_unit(MIB),
        ),
        whole(
            "gradients_bytes",
            "of the peak",
            "gradients MiB",
            _NOT_IN_PRINT,
            unit="bytes",
            shown=in_unit(MIB),
        ),
        whole(
            "optimizer_state_bytes",
            "of the peak",
            "optimizer MiB",
            _NOT_IN_PRINT,
            unit="bytes",
            shown=in_unit(MIB),
        ),
        whole(
            "activations_bytes",
            "of the peak",
            "activations MiB",
            _NOT_IN_PRINT,
            unit="bytes",
            shown=in_unit(MIB),
        ),
        whole(
            "saved_for_backward_bytes",
            "tensors that autograd keeps; exact, for this device, precision and attention kernel",
            "saved MiB",
            _NOT_IN_PRINT,
            unit="bytes",
            shown=in_unit(MIB),
        ),
        number(
            "train_joules_per_image",
            "energy that the device reports",
            "J/image",
            In.ALL,
            unit="J",
            **exact,
        ),
        text("merge_refusal", "why the method cannot be folded in"),
        text("energy_note", "why the energy is not known"),
        text("finished", "when; ISO 8601, UTC"),
        text("labels", "what the card says of itself", "notes", In.ALL, once=Once.SAME, left=True),
        text("error", "what ended it", "error", _NOT_IN_PRINT),
    ]
