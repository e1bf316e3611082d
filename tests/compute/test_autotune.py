import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tl_cli.compute.autotune import (
    Axis,
    Candidate,
    Choice,
    Fixed,
    Work,
    _with_threads_of,
    probe,
    search,
    thread_counts,
)
from tl_cli.compute.device import Machine, cores
from tl_cli.models import freezing
from tl_cli.models.zoo import registry

CPU = torch.device("cpu")
WORK = Work("mobilenet_v3_small", CPU, 32, 4)
ALL: list[tuple[Axis, tuple[object, ...]]] = [
    ("layout", ("contiguous", "channels-last")),
    ("precision", ("fp32", "bf16")),
    ("fold", (False, True)),
    ("threads", (1, 2)),
]


def timer(factors: Mapping[object, float]) -> Callable[[Candidate], float]:
    """Return a stopwatch on which a step takes 1 s times the factor of each value that has one."""

    def seconds(candidate: Candidate) -> float:
        taken = 1.0
        for value in (candidate.layout, candidate.precision, candidate.threads, candidate.fold):
            taken *= factors.get(value if not isinstance(value, bool) else str(value), 1.0)
        return taken

    return seconds


def found(factors: Mapping[object, float]) -> Candidate:
    return search(Candidate("contiguous", fold=False), ALL, timer(factors))[0]


def test_the_fastest_of_each_axis_is_taken() -> None:
    quick = {"channels-last": 0.4, "bf16": 0.6, 2: 0.7, "True": 0.9}
    assert found(quick) == Candidate("channels-last", "bf16", 2, True)


def test_small_gains_do_not_pay_for_less_precision_or_more_threads() -> None:
    assert found({"bf16": 0.88, 2: 0.95}) == Candidate("contiguous", "fp32", 1, False)


def test_ties_go_to_the_safest() -> None:
    assert found({}) == Candidate("contiguous", "fp32", 1, False)


def test_threads_that_collapse_once_are_not_taken() -> None:
    calls = []

    def seconds(candidate: Candidate) -> float:
        calls.append(candidate)
        if candidate.threads == 1:
            return 1.0
        return 4.0 if len(calls) == 6 else 0.6

    best, _, timings = search(Candidate(), [("threads", (1, 2))], seconds)
    assert best.threads == 1
    assert timings[1].seconds == (0.6, 4.0, 0.6)


def test_a_hopeless_candidate_is_not_timed_to_the_end() -> None:
    _, _, timings = search(Candidate(), [("precision", ("fp32", "bf16"))], timer({"bf16": 7.0}))
    assert [timing.seconds for timing in timings] == [(1.0, 1.0, 1.0), (7.0,)]


def test_a_candidate_that_fails_is_not_taken_and_the_reason_says_so() -> None:
    best, comparisons, _ = search(Candidate(), [("precision", ("fp32", "bf16"))], timer({"fp32": math.inf}))
    assert best.precision == "bf16"
    assert str(comparisons[0]) == "bf16, for fp32 fails here"
    best, comparisons, _ = search(Candidate(), [("precision", ("fp32", "bf16"))], lambda candidate: math.inf)
    assert (best, comparisons) == (Candidate(), ())


class Failing(nn.Module):
    """Has no memory for more than a few images, or for any."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.fc = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("no memory")
        return self.fc(images.mean((2, 3)))


@pytest.mark.parametrize("most", [0, 8])
def test_a_network_that_fails_ends_the_probe_and_not_the_run(most: int, tmp_path: Path) -> None:
    work, path = replace(WORK, batch_size=64), tmp_path / "probes.json"
    choice = probe(Failing(most), work, Fixed(threads=1), budget_s=1000, machine=Machine(CPU), path=path)
    assert choice is None
    assert not path.exists()


def test_candidates_take_turns() -> None:
    order = []

    def seconds(candidate: Candidate) -> float:
        order.append(candidate.layout)
        return 1.0

    search(Candidate(), ALL[:1], seconds, rounds=2)
    assert order == ["contiguous", "channels-last"] * 3


def test_the_reason_says_what_was_compared() -> None:
    quick = {"channels-last": 0.4, "bf16": 0.6, 2: 0.95, "True": 0.5}
    best, comparisons, timings = search(Candidate("contiguous", fold=False), ALL, timer(quick))
    choice = Choice(best, comparisons, timings, 64, 4.2, "2026-11-24")
    assert choice.why == (
        "channels-last 2.5x as fast as contiguous; bf16 1.7x as fast as fp32; BatchNorm folded 2.0x as fast as "
        "BatchNorm apart; 1 thread, with no clear gain from 2 threads; measured in 4 s"
    )
    assert replace(choice, remembered=True).why.endswith("; remembered from 2026-11-24")
    assert len(timings) == 8


@pytest.mark.parametrize(("cores", "counts"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (16, (1, 2, 4, 8, 16))])
def test_threads_are_doubled_up_to_all_cores(cores: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(cores) == counts


def model() -> nn.Module:
    network = registry.create("mobilenet_v3_small", 3, weights="none", input_size=32).model
    freezing.unfreeze(network, "train")
    return network.train()


FIXED = Fixed(layout="channels-last", precision="fp32", threads=1)


def measured(network: nn.Module, path: Path, fixed: Fixed = FIXED, budget_s: float = 1000) -> Choice | None:
    return probe(network, WORK, fixed, budget_s=budget_s, machine=Machine(CPU), path=path)


def test_what_a_person_chose_stays_and_the_rest_is_measured(tmp_path: Path) -> None:
    choice = measured(model(), tmp_path / "probes.json")
    assert choice is not None
    assert (choice.best.layout, choice.best.precision, choice.best.threads) == ("channels-last", "fp32", 1)
    assert len(choice.comparisons) == 1
    assert choice.images == 4
    assert not choice.remembered


def test_model_threads_and_random_state_are_as_before(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(3600, 2))
    state, random, threads = copy.deepcopy(network.state_dict()), torch.get_rng_state(), torch.get_num_threads()
    strides = [p.stride() for p in network.parameters()]
    measured(network, tmp_path / "probes.json", Fixed(layout="channels-last", precision="fp32", threads=2))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert [p.stride() for p in network.parameters()] == strides
    assert all(p.grad is None for p in network.parameters())
    assert all(module.training for module in network.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads


def test_the_answer_is_remembered_for_the_same_work_only(tmp_path: Path) -> None:
    path, network = tmp_path / "cache" / "probes.json", model()
    first, again = measured(network, path), measured(network, path, budget_s=0)
    assert first is not None
    assert again == replace(first, remembered=True)
    freezing.unfreeze(network, "frozen")
    assert measured(network, path, budget_s=0) is None


def test_how_many_threads_pay_is_asked_anew(tmp_path: Path) -> None:
    path, network = tmp_path / "probes.json", model()
    open_threads = Fixed(layout="channels-last", precision="fp32")
    first = measured(network, path, open_threads)
    assert first is not None
    again = measured(network, path, open_threads)
    assert again is not None
    assert again.remembered
    assert len(again.timings) == len(first.timings) + len(thread_counts(cores()))
    assert again.best.fold == first.best.fold
    short = measured(network, path, open_threads, budget_s=0)
    assert short is not None
    assert 1 <= short.best.threads <= cores()
    assert all(each.axis != "threads" for each in short.comparisons)


def test_one_core_remembers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_cli.compute.autotune.cores", lambda: 1)
    open_threads = Fixed(layout="channels-last", precision="fp32")
    first, again = (measured(model(), tmp_path / "probes.json", open_threads) for _ in range(2))
    assert first is not None
    assert again is not None
    assert again.remembered
    assert replace(again.best, threads=1) == replace(first.best, threads=1)


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"a": 1}', "\x00"])
def test_a_torn_memory_is_no_memory(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "probes.json"
    path.write_text(torn)
    assert measured(model(), path, budget_s=0) is None
    assert measured(model(), path) is not None


def test_a_record_that_is_no_choice_is_measured_again(tmp_path: Path) -> None:
    path, network = tmp_path / "probes.json", model()
    measured(network, path)
    path.write_text(path.read_text().replace('"comparisons"', '"compared"'))
    assert measured(network, path, budget_s=0) is None


def test_short_runs_never_probe(tmp_path: Path) -> None:
    assert measured(model(), tmp_path / "probes.json", budget_s=1.9) is None
    assert not (tmp_path / "probes.json").exists()


def test_a_feature_pass_is_timed_without_gradients(tmp_path: Path) -> None:
    work = replace(WORK, trains=False)
    fixed = Fixed(precision="fp32", threads=1)
    choice = probe(model(), work, fixed, budget_s=1000, machine=Machine(CPU), path=tmp_path / "probes.json")
    assert choice is not None
    assert [timing.candidate.layout for timing in choice.timings] == ["contiguous", "channels-last"]


def test_a_gpu_keeps_torchs_threads() -> None:
    choice = Choice(Candidate(threads=1), (), (), 4, 1.0, "2026-11-24")
    kept = _with_threads_of(choice, Fixed(), Machine(torch.device("cuda")))
    assert kept.best.threads == torch.get_num_threads()
