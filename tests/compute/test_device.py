import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tl_cli.choices import Layout, Precision
from tl_cli.compute import device as machine
from tl_cli.compute.device import Autocasting, Machine, bf16_is_fast, bf16_may_be_fast, choose_device, prepare_machine
from tl_cli.errors import UsageError
from tl_cli.models import freezing
from tl_cli.models.zoo import registry
from tl_cli.training.config import TrainConfig

CPU = torch.device("cpu")


def config(**settings: object) -> TrainConfig:
    needed = {
        "model": "resnet18", "epochs": 1, "freeze_epochs": 0, "optimizer": "adamw", "lr": 1e-3, "unfreeze_lr": 1e-3,
        "weight_decay": 0.0, "schedule": "constant", "bn": "frozen", "augment": "none", "input_size": 32,
        "device": "cpu", "precision": "fp32", "layout": "contiguous", "workers": 1,
    }  # fmt: skip
    return TrainConfig.model_validate(needed | settings)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "images-last"])
@pytest.mark.parametrize("fold", [None, True, False])
def test_logits_equal_the_networks_to_rounding(fold: bool | None, layout: Layout) -> None:
    model = registry.create("efficientnet_b0", 3, weights="none", input_size=32).model.eval()
    torch.nn.init.normal_(model.get_submodule("classifier.1").weight)
    images = torch.randn(16, 3, 32, 32)
    with torch.inference_mode():
        own = model(images)
        machine = Machine(CPU, layout=layout, fold=fold)
        seen = Autocasting(machine.place(model), machine)(images)
    torch.testing.assert_close(seen, own, rtol=1e-3, atol=1e-4)


def test_shortcuts_follow_what_is_frozen_from_phase_to_phase() -> None:
    classifier = registry.create("mobilenet_v3_small", 3, weights="none", input_size=32)
    network = Autocasting(classifier.model, Machine(CPU))
    images = torch.randn(4, 3, 32, 32)
    freezing.freeze_backbone(classifier.model, classifier.head_modules)
    network.train()(images).sum().backward()
    assert sum(p.grad is not None for p in classifier.model.parameters()) == 2
    freezing.unfreeze(classifier.model, "train")
    before = copy.deepcopy(dict(classifier.model.named_buffers()))
    network.train()(images).sum().backward()
    assert all(p.grad is not None for p in classifier.model.parameters())
    assert any(not torch.equal(value, before[name]) for name, value in classifier.model.named_buffers())


def test_the_shortcuts_of_a_network_are_found_once() -> None:
    model, images = (
        registry.create("mobilenet_v3_small", 3, weights="none", input_size=32).model,
        torch.randn(2, 3, 32, 32),
    )
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    counts = []
    for layout in ("channels-last", "contiguous", "images-last", "images-last"):
        passes.clear()
        Autocasting(model, Machine(CPU, layout=layout)).eval()(images)
        counts.append(len(passes))
    # Images last are tried by themselves.
    assert counts[0] > counts[1] == 1 < counts[2]
    assert counts[3] == 1


def test_threads_may_use_one_network_through_several_machines() -> None:
    model = registry.create("resnet18", 3, weights="none", input_size=32).model.eval()
    torch.nn.init.normal_(model.fc.weight)
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        expected = model(images)
    assert expected.std() > 0.1

    def infer(number: int) -> torch.Tensor:
        with torch.inference_mode():
            return Autocasting(model, Machine(CPU, layout="channels-last"))(images)

    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(infer, range(60)):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not any("forward" in vars(module) for module in model.modules())


def test_busy_cores_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    for busy, expected in [(0, 6), (10, 6), (50, 4), (97, 1), (100, 1)]:
        monkeypatch.setattr(machine.psutil, "cpu_percent", lambda interval, busy=busy: busy)
        assert machine.idle_cores() == expected


def test_a_copy_of_a_network_is_independent() -> None:
    network = Autocasting(registry.create("resnet18", 3, weights="none").model, Machine(CPU)).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.nn.init.ones_(network.network.get_submodule("fc").weight)
        own = network(images)
        twin = copy.deepcopy(network)
        for parameter in network.parameters():
            parameter.zero_()
        torch.testing.assert_close(twin(images), own)


def test_workers_are_as_given_or_one_per_core_and_at_most_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in [(1, 1), (4, 4), (64, 8)]:
        monkeypatch.setattr(machine, "cores", lambda cores=cores: cores)
        assert machine.worker_count() == expected
        assert machine.worker_count(0) == 0
        assert machine.worker_count(12) == 12


def test_features_are_not_converted() -> None:
    head = torch.nn.Linear(4, 2)
    features = torch.randn(3, 4)
    assert torch.equal(Autocasting(head, Machine(CPU))(features), head(features))


def test_a_gpu_takes_no_shortcuts_by_default() -> None:
    assert not Machine(torch.device("cuda")).takes_shortcuts
    assert Machine(torch.device("cuda"), fold=True).takes_shortcuts
    assert Machine(CPU, fold=False).takes_shortcuts


@pytest.mark.parametrize(
    ("device", "precision", "input_size", "images"),
    [
        ("cpu", "fp32", 64, 48), ("cpu", "fp32", 96, 21), ("cpu", "fp32", 224, 3), ("cpu", "fp32", 2048, 1),
        ("cpu", "bf16", 64, 144), ("cpu", "bf16", 96, 64), ("cpu", "bf16", 32, 256), ("cuda", "fp32", 64, 256),
        ("cuda", "bf16", 224, 20),
    ],
)  # fmt: skip
def test_an_evaluation_batch_has_a_number_of_pixels(
    device: str, precision: Precision, input_size: int, images: int
) -> None:
    assert Machine(torch.device(device), precision).eval_batch(input_size) == images


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(UsageError, match="fp16 is for GPUs; on a CPU use fp32 or bf16"):
        prepare_machine("cpu", precision="fp16", layout="contiguous", fold=None, threads=0)


def test_images_last_is_channels_last_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # Such as the layout that a run recorded on a CPU and that is resumed on a GPU.
    machine = prepare_machine("cuda", precision="fp32", layout="images-last", fold=True, threads=0)
    assert (machine.memory_format, machine.puts_images_last) == (torch.channels_last, False)
    assert Machine(CPU, layout="images-last").puts_images_last


def test_the_machine_follows_the_config() -> None:
    machine = prepare_machine("cpu", precision="bf16", layout="channels-last", fold=None, threads=0)
    assert machine == Machine(CPU, "bf16", "channels-last")
    assert machine.describe().endswith("bf16, channels-last")


def test_bf16_is_not_assumed_fast_on_a_cpu() -> None:
    assert not bf16_is_fast(CPU)
    assert isinstance(bf16_may_be_fast(CPU), bool)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused() -> None:
    with pytest.raises(UsageError, match="torch finds no CUDA device here; use --device cpu or auto"):
        choose_device("cuda")


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("", 8)])
def test_a_containers_cpu_quota_limits_the_cores(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert machine.cores(tmp_path / "cpu.max") == expected


def test_seeding_stores_nothing_for_missing_devices() -> None:
    waiting = len(torch.cuda._queued_calls)
    here = Machine(torch.device("cpu"))
    here.seed(5)
    drawn = torch.rand(4)
    here.seed(5)
    assert torch.equal(drawn, torch.rand(4))
    here.seed(6)
    assert not torch.equal(drawn, torch.rand(4))
    assert len(torch.cuda._queued_calls) == waiting
