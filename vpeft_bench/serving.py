"""A finished run, ready to predict with, and its weights for use elsewhere."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vpeft_bench.attachment import Attached
from vpeft_bench.config import RunConfig
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.loading import resized
from vpeft_bench.errors import NotMergeableError, VpeftBenchError
from vpeft_bench.files import replacing, typed_path
from vpeft_bench.finished import finished_model, finished_run
from vpeft_bench.preprocessing import Preprocessing
