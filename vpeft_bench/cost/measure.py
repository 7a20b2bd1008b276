"""One measurement, top to bottom: ``python -m vpeft_bench.cost.measure``, in a process of its own.

The request comes as JSON through standard input, the answer is a card. Nothing else has happened in
the process: no other method has left anything in the allocator or in the caches.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from vpeft_bench.attaching.attachment import attach_method
from vpeft_bench.backbones.load import load_backbone
from vpeft_bench.cost.build import MeasuredModel, build_measured
from vpeft_bench.cost.device import MeteredDevice, find_device
from vpeft_bench.cost.flops import per_image
from vpeft_bench.cost.memory import PeakMeter, peak_meter, saved_for_backward, split
from vpeft_bench.cost.process import EXIT_BUSY
from vpeft_bench.cost.request import Request, from_plain, labels
from vpeft_bench.cost.steps import Batches, TrainingStep, inference_step, synchronize, timed
from vpeft_bench.errors import NotMergeableError, UnsupportedBackboneError
from vpeft_bench.methods.registry import build_method
from vpeft_bench.records import cost_card as cards
from vpeft_bench.records.cost_card import (
    CardStatus,
    CardWhere,
    CostCard,
    Flops,
    Measured,
    Memory,
    Timing,
)
from vpeft_bench.records.environment import environment, utc_now
from vpeft_bench.records.run_record import Parameters
from vpeft_bench.runs.build import compile_in_place
from vpeft_bench.runs.host import out_of_memory

MEMORY_WARMUP_STEPS = 2
MEMORY_STEPS = 2


def main() -> int:
    """Measure what standard input asks for and write the card; 3 where the device is in use."""
    (path,) = sys.argv[1:]
    request = from_plain(json.load(sys.stdin))
    metered = find_device(request.hardware)
    if (busy := metered.described.busy) and not request.cost.allow_busy:
        print(f"{metered.described.name}: {busy}")
        return EXIT_BUSY
    cards.write(measured_card(request, metered), Path(path))
    return 0


def measured_card(request: Request, metered: MeteredDevice) -> CostCard:
    """The card of a request, however the measurement ends."""
    started, circumstances = utc_now(), environment()
    measurement = Measurement(request, metered)
    measured, status, error = None, CardStatus.OK, None
    try:
        measured = measurement.run()
    except UnsupportedBackboneError as caught:
        status, error = CardStatus.UNSUPPORTED, _one_line(caught)
    except Exception as caught:  # whatever went wrong is the answer to the request
        traceback.print_exc()
        status = CardStatus.OOM if out_of_memory(caught) else CardStatus.FAILED
        error = f"{measurement.phase}: {type(caught).__name__}: {_one_line(caught)}"
    return CostCard(
        card_id=request.card_id(metered.described.name),
        status=status,
        error=error,
        asked=request.asked(),
        measured=measured,
        where=CardWhere(
            **circumstances, started=started, finished=utc_now(), device=metered.described
        ),
        labels=labels(request, metered.described),
        uncounted=request.uncounted,
        method_version=request.method_version,
    )


class Measurement:
    """The story of one measurement.

    Attributes:
        phase: what is being done, for the error where it fails.
    """

    def __init__(self, request: Request, metered: MeteredDevice) -> None:
        self.request = request
        self.cost = request.cost
        self.hardware = request.hardware
        self.metered = metered
        self.device = metered.device
        self.phase = "preparation"

    def run(self) -> Measured:
        """Everything, in an order in which nothing disturbs what follows."""
        meter = peak_meter(self.device)
        self._use_libraries_once()
        meter.start()
        self.phase = "building the model"
        measured = build_measured(self.request, self.device)
        attached = measured.attached
        parameters, stored_bytes = attached.parameter_counts(), attached.stored_bytes()

        self.phase = f"training step, cost.batch_size={self.cost.batch_size}"
        step = self._training_step(measured)
        # Of the model as it is written, not of what a compiler makes of it.
        flops, saved = self._flops(step, measured), self._saved_for_backward(step)
        if self.hardware.compile:
            compile_in_place(attached)
        memory = self._memory(step, meter, saved)
        training, joules, energy_note = self._training(step)
        step.optimizer.zero_grad()
        del step  # the batch and the optimizer's state

        self.phase = f"inference, cost.inference_batch_size={self.cost.inference_batch_size}"
        inference = self._inference(measured)
        merged, merge_refusal = self._merged_inference(measured)
        return Measured(
            image_size=list(measured.batches.image_size),
            parameters=Parameters(**vars(parameters)),
            stored_bytes=stored_bytes,
            flops=flops,
            training_step=training,
            inference=inference,
            inference_merged=merged,
            merge_refusal=merge_refusal,
            memory=memory,
            training_joules_per_image=joules,
            energy_note=energy_note,
        )

    def _use_libraries_once(self) -> None:
        """Train the demo backbone: what libraries load once and keep is no part of the memory."""
        demo = load_backbone("vpeft_demo_vit", "none", 2)
        attached = attach_method(demo.model.to(self.device), build_method("full", {}))
        batches = Batches(demo.image_size, 2, self.device)
        TrainingStep(attached, self.hardware, batches.draw(2), steps=2).run(2)

    def _training_step(self, measured: MeasuredModel) -> TrainingStep:
        measured.attached.model.train()
        steps = MEMORY_WARMUP_STEPS + MEMORY_STEPS + self.cost.warmup_steps + self.cost.steps
        batch = measured.batches.draw(self.cost.batch_size)
        return TrainingStep(measured.attached, self.hardware, batch, steps)

    def _flops(self, step: TrainingStep, measured: MeasuredModel) -> Flops:
        model, batches = measured.attached.model, measured.batches

        def forward(images: int) -> None:
            model(batches.draw(images)[0])

        def forward_and_backward(images: int) -> None:
            step.loss(*batches.draw(images)).backward()

        return Flops(
            forward=per_image(forward, self.cost.batch_size),
            training_step=per_image(forward_and_backward, self.cost.batch_size),
            plain=measured.plain_flops,
            closed_form=measured.closed_form,
        )

    def _saved_for_backward(self, step: TrainingStep) -> int:
        model = step.attached.model
        given = (*model.parameters(), *model.buffers(), step.images, step.labels)
        return saved_for_backward(lambda: step.loss(step.images, step.labels), given)

    def _memory(self, step: TrainingStep, meter: PeakMeter, saved: int) -> Memory:
        """A phase of its own: the state of the optimizer is there, and nothing is left over."""
        step.run(MEMORY_WARMUP_STEPS)
        step.optimizer.zero_grad()
        peak = meter.peak(lambda: step.run(MEMORY_STEPS))
        meter.finish()
        return split(peak, step.attached.model, step.optimizer, saved)

    def _training(self, step: TrainingStep) -> tuple[Timing, float | None, str | None]:
        """Time of a step; joules of an image, or why they are not known."""
        step.run(self.cost.warmup_steps)
        synchronize(self.device)
        before, note = self.metered.joules()
        timing = self._timed(step, self.cost.batch_size)
        after, _ = self.metered.joules()
        if before is None or after is None:
            return timing, None, note
        return timing, (after - before) / (self.cost.steps * self.cost.batch_size), None

    def _inference(self, measured: MeasuredModel) -> Timing:
        if self.hardware.compile:
            torch.compiler.reset()  # what is compiled for one phase does not count for the next
        images, _ = measured.batches.draw(self.cost.inference_batch_size)
        step = inference_step(measured.attached.model, images, self.hardware.precision)
        for _ in range(self.cost.warmup_steps):
            step()
        return self._timed(step, self.cost.inference_batch_size)

    def _merged_inference(self, measured: MeasuredModel) -> tuple[Timing | None, str | None]:
        """Time with the method folded into the backbone, or why it cannot be."""
        try:
            measured.attached.merge()
        except NotMergeableError as error:
            return None, _one_line(error)
        return self._inference(measured), None

    def _timed(self, step: Callable[[], None], batch_size: int) -> Timing:
        return timed(step, self.cost.steps, self.cost.blocks, batch_size, self.device)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
