"""Inference speed on this machine, measured in turns so that other load affects all models equally."""

import time
from collections.abc import Sequence
from itertools import repeat
from statistics import median

import torch
from torch import Tensor, nn

from tl_cli.choices import DeviceName
from tl_cli.compute.device import Autocasting, Machine, inference_machine
from tl_cli.data.batches import Batch
from tl_cli.evaluation.logits import outputs
from tl_cli.io.download import Progress, silent
from tl_cli.models.classifier import Classifier

BATCH = 64
_ROUNDS = 5
_ROUND_S = 0.5  # approximate duration of one model's turn


def inference_speeds(
    classifiers: Sequence[Classifier], device: DeviceName = "auto", progress: Progress = silent
) -> list[float]:
    """Return images per second of each model in fp32, without decoding: the median of 5 rounds on batches of 64.

    A model that averages each image and its mirror image computes two for one.

    Raises:
        UsageError: the device is not available.
    """
    machine = inference_machine(device)
    benches = [_Bench(classifier, machine) for classifier in classifiers]
    # A multiple of the number of threads, so that none is idle at the end.
    least = machine.at_once
    batches = [least * max(1, round(_ROUND_S / bench.seconds(least))) for bench in benches]
    seconds: list[list[float]] = [[] for _ in benches]
    for turn in range(_ROUNDS):
        for index, (bench, count) in enumerate(zip(benches, batches, strict=True)):
            seconds[index].append(bench.seconds(count) / count)
            progress("measuring speed", turn * len(benches) + index + 1, _ROUNDS * len(benches))
    views = [2 if classifier.tta == "flip" else 1 for classifier in classifiers]
    return [BATCH / count / median(each) for count, each in zip(views, seconds, strict=True)]


class _Bench:
    """One model and one batch, which it computes again and again; warmed up."""

    def __init__(self, classifier: Classifier, machine: Machine) -> None:
        self._machine = machine
        machine.place(classifier.model)
        self._network: nn.Module = Autocasting(classifier.model.eval(), machine)
        side = classifier.preprocessing.crop
        noise = torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0))
        self._images: Tensor = noise.to(machine.device).contiguous(memory_format=machine.memory_format)
        self.seconds(1)

    def seconds(self, count: int) -> float:
        """Return the duration of ``count`` batches."""
        self._machine.wait()
        start = time.perf_counter()
        # Batches in parallel, as in evaluation: threads that share one batch wait for each other on a busy core.
        batch = Batch(self._images, torch.zeros(BATCH, dtype=torch.int64))
        for _ in outputs(self._network, repeat(batch, count), at_once=self._machine.at_once):
            pass
        self._machine.wait()
        return time.perf_counter() - start
