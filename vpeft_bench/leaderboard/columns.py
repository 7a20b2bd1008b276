"""The columns of all tables: one list for the terminal, CSV, Markdown, LaTeX, JSON and the docs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, Flag, auto
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vpeft_bench.formats import (
    GIGA,
    KIB,
    MIB,
    fraction,
    percent,
    quantity,
)
from vpeft_bench.metrics.names import METRICS, heading


class Kind(Enum):
    """What the values of a column are, in a file."""

    TEXT = "string"
    WHOLE = "integer"
    NUMBER = "number"


class In(Flag):
    """Where a column is shown."""

    FILES = auto()
    """CSV and JSON."""
    PAGES = auto()
    """Markdown and LaTeX."""
    TERMINAL = auto()
    READERS = PAGES | TERMINAL
    ALL = FILES | READERS


class Once(Enum):
    """What a terminal does with a column that says nothing of the rows."""

    NEVER = auto()
    SAME = auto()
    """Where all rows have the same value it is said once, below the table."""
    UNMEASURED = auto()
    """Where no row has a number its name is said below the table."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: its name in frames and files.
        what: what it says, for the docs and the schema.
        title: its name in print, with the unit.
        kind: what its values are.
        unit: of the values in files.
        digits: after the point in files; None: all there are.
        shown: a value for a reader; None: as it is.
        where: where it is shown.
        once: what a terminal does where it tells no rows apart.
        left: text, aligned to the left and broken between words.
    """

    key: str
    what: str
    title: str = ""
    kind: Kind = Kind.TEXT
    unit: str = ""
    digits: int | None = None
    shown: Callable[[Any], str] | None = None
    where: In = In.FILES
    once: Once = Once.NEVER
    left: bool = False

    def texts(self, frame: pd.DataFrame) -> list[str]:
        """The values for a reader."""
        values = _plain(frame[self.key])
        shown = self.shown or (lambda value: "" if value is None else str(value))
        said = {value: shown(value) for value in set(values)}
        return [said[value] for value in values]

    def exact(self, frame: pd.DataFrame) -> pa.Array:
        """The values for a file: null for what is not known, and for a text that is empty."""
        values = pa.Array.from_pandas(frame[self.key])
        if self.kind is Kind.NUMBER:
            values = values.cast(pa.float64())
            return values if self.digits is None else pc.round(values, self.digits)
        if self.kind is Kind.WHOLE:
            return values.cast(pa.int64())
        texts = values.cast(pa.string())
        return pc.if_else(pc.equal(texts, ""), None, texts)


def _plain(values: pd.Series) -> list[Any]:
    """Python's own values; None for what is not there."""
    listed: list[Any] = values.astype(object).where(values.notna(), None).tolist()
    return listed


def _in(unit: int) -> Callable[[Any], str]:
    return lambda value: quantity(value, unit)


def _text(key: str, what: str, title: str = "", where: In = In.FILES, **more: Any) -> Column:
    return Column(key, what, title, where=where, **more)


def _whole(key: str, what: str, title: str = "", where: In = In.FILES, **more: Any) -> Column:
    shown = {"shown": quantity, "once": Once.UNMEASURED} if title else {}
    return Column(key, what, title, Kind.WHOLE, where=where, **{**shown, **more})


def _number(key: str, what: str, title: str = "", where: In = In.FILES, **more: Any) -> Column:
    shown = {"shown": quantity, "once": Once.UNMEASURED} if title else {}
    return Column(key, what, title, Kind.NUMBER, where=where, **{"digits": 6, **shown, **more})


# ---- what several tables have --------------------------------------------------------------------

_PROTOCOL = (
    _text("protocol", "`final` scores test images, `select` validation images"),
    _text("split", "the images that were scored"),
)
_NAME = _text(
    "name", "the row: its variant's name, or the method and what of its options is not default"
)
_VARIANT = _text("variant", "name of the [variant](variants.md), where the runs are of one")
_SHOWN_NAME = (
    _text("shown_name", "", "variant", In.READERS, left=True),
    _text("shown_method", "", "method", In.READERS, left=True),
    _text("shown_options", "", "options", In.READERS, left=True),
)
_ENTRY = (
    _NAME,
    _VARIANT,
    _text("method", "name of the method"),
    _text("options", "its options; those of a variant may differ between data sets"),
    *_SHOWN_NAME,
    _text("backbone", "name of the backbone", "backbone", In.ALL, once=Once.SAME, left=True),
    _text("weights", "pretrained, demo, random or unknown"),
    _text("weights_fingerprint", "hash of the weights; empty for random ones"),
    _text("shown_weights", "", "weights", In.READERS, once=Once.SAME, left=True),
    _text(
        "normalization",
        "name of the normalisation",
        "normalization",
        In.ALL,
        once=Once.SAME,
        left=True,
    ),
    _text(
        "precision", "arithmetic of the training", "precision", In.ALL, once=Once.SAME, left=True
    ),
)
_FROM_VARIANT = (
    _text(
        "chosen",
        "how rate, decay and options were chosen: by which recipe or variant, by hand, or untuned",
        "chosen",
        In.ALL,
        once=Once.SAME,
        left=True,
        shown=lambda chosen: (chosen or "").partition(", ")[0],
    ),
    _whole("tuning_budget", "points that `tune` tried to find the settings", "budget", In.ALL),
    _text("tuning_space", "hash of what was searched, and in which order"),
    _whole("tuning_failed", "points of them that have no score", "failed points", In.ALL),
    _number("tuning_seconds", "recorded seconds of all points", "tuning s", In.ALL),
    _text("tuning_device", "where the points ran"),
)
_DEPARTS = (
    _text("departs", "what else the row does otherwise than most rows of the table"),
    _text("shown_departs", "", "departs", In.READERS, left=True),
)
_LABELS = _text(
    "labels", "what the runs say of themselves", "notes", In.ALL, once=Once.SAME, left=True
)
_OWN = In.FILES | In.READERS
_SCORES = (
    _number(
        "ppt",
        "[score](leaderboard.md#scores) of metric and parameters, a fraction",
        "PPT",
        In.ALL,
        shown=fraction,
        once=Once.NEVER,
    ),
    _number(
        "pscp_style",
        "[score](leaderboard.md#scores) of metric and costs, a fraction",
        "PSCP style",
        In.ALL,
        shown=fraction,
        once=Once.NEVER,
    ),
    _text("score_constants", "the constants of both scores"),
)
_CARD = (
    _number(
        "card_train_step_ms_median",
        "time of a training step",
        "card step ms",
        In.ALL,
        unit="ms",
        digits=None,
    ),
    _number(
        "card_train_step_images_per_second",
        "training images over training time",
        "card images/s",
        In.ALL,
        unit="1/s",
        digits=None,
    ),
    _whole(
        "card_train_step_flops_per_image",
        "operations of a training step",
        "card GFLOPs",
        In.ALL,
        shown=_in(GIGA),
    ),
    _whole("card_peak_allocated_bytes", "peak of a training step on an accelerator", unit="bytes"),
    _whole(
        "card_peak_resident_growth_bytes",
        "the same on a CPU: growth of resident memory",
        unit="bytes",
    ),
    _whole("card_peak", "", "card peak MiB", In.READERS, shown=_in(MIB)),
    _text("card_device", "where the card was measured"),
    _whole("card_batch_size", "images of its training step"),
    _text("card_id", "which card it is"),
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
    own = In.FILES | In.PAGES if with_cards else In.ALL
    return [
        _text("benchmark", "benchmark of the data set; `custom` for a user's own"),
        _text("data", "name of the data set", "data", In.ALL, once=Once.SAME, left=True),
        *_PROTOCOL,
        _text("shown_data_fingerprint", "", "data version", In.READERS, left=True),
        _text("shown_image_format", "", "pictures", In.READERS),
        *_ENTRY,
        *_FROM_VARIANT,
        *_DEPARTS,
        _text(
            "head",
            "the dense head; empty for classification",
            "head",
            In.ALL,
            once=Once.SAME,
            left=True,
        ),
        _text("config_hash", "the whole configuration, see [records](records.md)"),
        _text("shown_config", "", "config", In.READERS, left=True),
        _text("metric", "the headline metric: what runs on the data set are ranked by"),
        _text("shown_metric", "", "metric" if len(ranked) > 1 else "", In.READERS),
        _text("shown_score", "", score, In.READERS),
        _number("mean", "its mean over the runs that finished, at the last epoch", unit="metric's"),
        _number(
            "std",
            "sample deviation, which divides by n - 1; none for one run",
            "± std",
            In.ALL,
            unit="metric's",
            shown=percent,
            once=Once.NEVER,
        ),
        _whole("n", "runs that finished", "n", In.ALL, shown=str, once=Once.NEVER),
        _number(
            "ci_low",
            "lower end of the mean's 95 % interval, Student's t over seeds; none for one run",
            unit="metric's",
        ),
        _number("ci_high", "upper end of the same", unit="metric's"),
        _number("min", "the smallest value", unit="metric's"),
        _number("max", "the largest value", unit="metric's"),
        _text("seeds", "seeds of the runs that finished"),
        *(_metric_mean(name, ranked) for name in metrics),
        _whole(
            "parameters_method", "trained by the method, the largest of its runs", "params", In.ALL
        ),
        _whole("parameters_head", "trained in the head", "head params", In.FILES | In.PAGES),
        _whole("parameters_total", "both"),
        _whole(
            "stored_delta_bytes",
            "size of the delta checkpoint",
            "delta KiB",
            In.FILES | In.PAGES,
            unit="bytes",
            shown=_in(KIB),
        ),
        _number("train_seconds_mean", "the runs' own, incidental timing", "train s", own, unit="s"),
        _number("train_images_per_second_mean", "the same", "images/s", own, unit="1/s"),
        _whole(
            "peak_memory_bytes_max",
            "the same; of an accelerator",
            "peak MiB",
            own,
            unit="bytes",
            shown=_in(MIB),
        ),
        _text("device", "where the runs were made"),
        *_scores(with_cards),
        *_card(with_cards),
        _text("data_fingerprint", "the data that were read, the pixels of a sample included"),
        _text("image_format", "`jpeg`, `png`, ...; `array` where pictures are rendered"),
        _whole("failed", "runs that did not finish"),
        _text("failed_reasons", "how and why"),
        _text("not_finished", "", "not finished", In.READERS),
        _LABELS,
    ]


def summary_columns(
    means: Iterable[str], datasets: Iterable[str], with_cards: bool, scored: bool = True
) -> list[Column]:
    """Of a table with one row per entry: the means of a benchmark, and its data sets."""
    scores = _scores(with_cards) if scored else [replace(c, where=In.FILES) for c in _SCORES]
    return [
        _text("number", "", "#", In.TERMINAL),
        *_PROTOCOL,
        *_ENTRY,
        *_FROM_VARIANT,
        *_DEPARTS,
        _whole(
            "parameters_method", "trained by the method, the largest of its runs", "params", In.ALL
        ),
        *(
            _number(
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
        _text("complete", "how many data sets have a value, out of how many", "complete", In.ALL),
        *scores,
        *(
            replace(c, where=c.where & ~In.TERMINAL) if c.key.endswith("per_second") else c
            for c in _card(with_cards)
        ),
        *(
            column
            for name in datasets
            for column in (
                _number(
                    name, "mean on that data set; none where `cells` says why", unit="metric's"
                ),
                _text(f"shown {name}", "", name, In.PAGES),
            )
        ),
        _text("cells", "data sets without a value or with runs that did not finish, and why"),
        _LABELS,
    ]


def run_columns(metrics: Iterable[str]) -> list[Column]:
    """Of a table with one row per run."""
    return [
        _text("run_id", "names the run"),
        _text("benchmark", "benchmark of the data set"),
        _text("group", "group of the data set in its benchmark"),
        _text("data", "name of the data set"),
        *_PROTOCOL,
        _NAME,
        _VARIANT,
        _text("method", "name of the method"),
        _text("options", "its options"),
        *(column for column in _ENTRY if column.key in _OF_A_RUN),
        *_FROM_VARIANT,
        _text("head", "the dense head; empty for classification"),
        _text("config_hash", "the whole configuration, see [records](records.md)"),
        _whole("seed", "of the run"),
        _text("status", "`ok`, `failed`, `oom`, `interrupted` or `diverged`"),
        _text("error", "what ended it"),
        _text("metric", "the headline metric"),
        _number("value", "its value at the last epoch", unit="metric's"),
        _whole("epoch", "epochs completed by then"),
        _whole("images", "images scored"),
        *(
            _number(f"metric_{name}", "that metric at the last epoch", unit="metric's")
            for name in metrics
        ),
        _number("train_loss", "mean loss of the last epoch"),
        _whole("parameters_method", "trained by the method"),
        _whole("parameters_head", "trained in the head"),
        _whole("parameters_total", "both"),
        _whole("stored_delta_bytes", "size of the delta checkpoint", unit="bytes"),
        _number("train_seconds", "training, without evaluation", unit="s"),
        _number("train_images_per_second", "training images over training time", unit="1/s"),
        _whole("peak_memory_bytes", "of an accelerator", unit="bytes"),
        _text("device", "where the run was made"),
        _text("data_fingerprint", "the data that were read"),
        _text("image_format", "`jpeg`, `png`, ...; `array` where pictures are rendered"),
        _text("labels", "what the run says of itself"),
    ]


_OF_A_RUN = {"backbone", "weights", "weights_fingerprint", "normalization", "precision"}


def _metric_mean(name: str, headlines: Sequence[str]) -> Column:
    """The mean of a metric; readers see it beside the headlines that it says more of."""
    key, what = f"{name}_mean", "mean of that metric over the runs that finished"
    if name not in METRICS or not set(METRICS.get(name).beside) & set(headlines):
        return _number(key, what, unit="metric's")
    where = In.FILES | In.PAGES if name == _LONG else In.ALL
    return _number(key, what, heading(name), where, unit="metric's", shown=percent, once=Once.NEVER)


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
        return _number(key, says, title, In.ALL if title else In.FILES, unit=unit, digits=None)

    return [
        *(
            column(f"{name}_ms_{q}", f"of {what}: {says} over blocks of steps", "ms")
            for q, says in _QUARTILES.items()
        ),
        column(f"{name}_images_per_second", f"of {what}: of the median", "1/s"),
    ]


_MORE = In.FILES | In.PAGES


def cost_columns() -> list[Column]:
    """Of a table with one row per cost card."""
    exact: dict[str, Any] = {"digits": None}
    return [
        _text("card_id", "names the card"),
        _text("method", "what was measured", "method", In.ALL, left=True),
        _text("options", "options of the method"),
        _text("shown_options", "", "options", In.READERS, left=True),
        _text("backbone", "name of the backbone", "backbone", In.FILES | In.PAGES),
        _text("network", "what of the backbone decides its cost"),
        _text(
            "resolution",
            "height and width; `own resolution` is that of the weights",
            "resolution",
            In.FILES | In.PAGES,
        ),
        _text("precision", "arithmetic", "precision", In.FILES | In.PAGES),
        _text("device", "name of the device"),
        _text("shown_device", "", "device", In.PAGES),
        _text("device_kind", "`cpu` or `cuda`"),
        _whole("device_threads", "threads that the tensor library computed with"),
        _text("device_driver", "driver of an accelerator"),
        _number("device_power_limit_watts", "of an accelerator", unit="W", **exact),
        _text("device_busy", "what else used the device"),
        _whole(
            "batch_size",
            "images per training step",
            "batch",
            In.FILES | In.PAGES,
            shown=str,
            once=Once.NEVER,
        ),
        _text("setting", "everything else that was asked of the measurement"),
        _text("shown_hardware", "", "hardware", In.READERS, once=Once.SAME, left=True),
        _text("shown_setting", "", "setting", In.PAGES),
        _text(
            "status",
            "how it ended; a card that is not `ok` has an error and no number",
            "status",
            In.ALL,
            once=Once.SAME,
            left=True,
        ),
        _whole("parameters_method", "trained by the method", "params", In.ALL),
        _whole("parameters_head", "trained in the head", "head params", _MORE),
        _whole("parameters_total", "both", "all params", _MORE),
        _whole("parameters_model", "of the model, trained or frozen"),
        _whole(
            "stored_delta_bytes",
            "size of the delta checkpoint",
            "stored KiB",
            _MORE,
            unit="bytes",
            shown=_in(KIB),
        ),
        _whole(
            "forward_flops_per_image",
            "floating-point operations; a multiplication and an addition are two",
            "GFLOPs fwd",
            In.ALL,
            shown=_in(GIGA),
        ),
        _whole(
            "train_step_flops_per_image",
            "forward and backward",
            "GFLOPs step",
            In.ALL,
            shown=_in(GIGA),
        ),
        _whole("plain_forward_flops_per_image", "of the backbone alone, counted"),
        _whole("closed_form_forward_flops_per_image", "of the backbone alone, by its formula"),
        *(column for name, what in _TIMINGS.items() for column in _timing(name, what)),
        _whole("peak_allocated_bytes", "peak of a training step on an accelerator", unit="bytes"),
        _whole("peak_reserved_bytes", "what the allocator holds", unit="bytes"),
        _whole(
            "peak_resident_growth_bytes",
            "on a CPU instead: growth of resident memory",
            unit="bytes",
        ),
        _text("shown_allocated", "", "allocated MiB", In.READERS),
        _text("shown_reserved", "", "reserved MiB", In.PAGES),
        _text("shown_resident", "", "resident MiB", In.READERS),
        _whole("weights_bytes", "of the peak", "weights MiB", _MORE, unit="bytes", shown=_in(MIB)),
        _whole(
            "gradients_bytes", "of the peak", "gradients MiB", _MORE, unit="bytes", shown=_in(MIB)
        ),
        _whole(
            "optimizer_state_bytes",
            "of the peak",
            "optimizer MiB",
            _MORE,
            unit="bytes",
            shown=_in(MIB),
        ),
        _whole(
            "activations_bytes",
            "of the peak",
            "activations MiB",
            _MORE,
            unit="bytes",
            shown=_in(MIB),
        ),
        _whole(
            "saved_for_backward_bytes",
            "tensors that autograd keeps; exact, and the same on every device",
            "saved MiB",
            _MORE,
            unit="bytes",
            shown=_in(MIB),
        ),
        _number(
            "train_joules_per_image",
            "energy that the device reports",
            "J/image",
            In.ALL,
            unit="J",
            **exact,
        ),
        _text("merge_refusal", "why the method cannot be folded in"),
        _text("energy_note", "why the energy is not known"),
        _text("finished", "when; ISO 8601, UTC"),
        _text("labels", "what the card says of itself", "notes", In.ALL, once=Once.SAME, left=True),
        _text("error", "what ended it", "error", In.FILES | In.PAGES),
    ]
