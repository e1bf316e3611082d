import copy
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tl_cli.compute.autotune import (
    Axis,
    Candidate,
    Choice,
    Work,
    open_axes,
    probe,
    search,
    thread_counts,
    time_in_turns,
)
from tl_cli.compute.device import cores
from tl_cli.models import freezing
from tl_cli.models.zoo import registry

CPU = torch.device("cpu")
WORK = Work("mobilenet_v3_small", CPU, 32, 4)
ALL: dict[Axis, tuple[object, ...]] = {
    "layout": ("contiguous", "channels-last"),
    "precision": ("fp32", "bf16"),
    "fold": (False, True),
    "threads": (1, 2),
}
PRECISIONS = [Candidate(), Candidate(precision="bf16")]


def timer(factors: Mapping[object, float]) -> Callable[[Candidate], float]:
    """Return a timer for which a step takes 1 s times the factor of each given value."""

    def seconds(candidate: Candidate) -> float:
        taken = 1.0
        for value in (candidate.layout, candidate.precision, candidate.threads, candidate.fold):
            taken *= factors.get(value if not isinstance(value, bool) else str(value), 1.0)
        return taken

    return seconds


def fastest(factors: Mapping[object, float]) -> Candidate:
    return search(Candidate("contiguous", fold=False), ALL, timer(factors))[0]


def test_the_fastest_value_of_each_axis_is_chosen() -> None:
    quick = {"channels-last": 0.4, "bf16": 0.6, 2: 0.7, "True": 0.9}
    assert fastest(quick) == Candidate("channels-last", "bf16", 2, True)


def test_small_gains_do_not_justify_less_precision_or_more_threads() -> None:
    assert fastest({"bf16": 0.88, 2: 0.95}) == Candidate("contiguous", "fp32", 1, False)


def test_images_last_is_tried_where_a_cpu_trains() -> None:
    training = open_axes(WORK, ["precision"])["layout"]
    assert training == ("contiguous", "channels-last", "images-last")
    for work in (replace(WORK, trains=False), replace(WORK, device=torch.device("cuda"))):
        assert "images-last" not in open_axes(work, ["precision"])["layout"]


def test_ties_keep_the_safest() -> None:
    assert fastest({}) == Candidate("contiguous", "fp32", 1, False)


def test_threads_that_are_slow_in_one_round_are_not_chosen() -> None:
    calls = []

    def seconds(candidate: Candidate) -> float:
        calls.append(candidate)
        if candidate.threads == 1:
            return 1.0
        return 4.0 if len(calls) == 6 else 0.6

    best, (comparison,) = search(Candidate(), {"threads": (1, 2)}, seconds)
    assert best.threads == 1
    assert calls == [Candidate(threads=1), Candidate(threads=2)] * 4
    assert comparison.ratio == 0.6


def test_a_much_slower_candidate_is_timed_only_once() -> None:
    seconds = time_in_turns(PRECISIONS, timer({"bf16": 7.0}))
    assert seconds == {Candidate(): [1.0, 1.0, 1.0], Candidate(precision="bf16"): [7.0]}


def test_a_candidate_that_fails_is_not_chosen_and_the_reason_is_given() -> None:
    axes: dict[Axis, tuple[object, ...]] = {"precision": ("fp32", "bf16")}
    best, comparisons = search(Candidate(), axes, timer({"fp32": math.inf}))
    assert best.precision == "bf16"
    assert str(comparisons[0]) == "bf16; fp32 fails here"
    best, comparisons = search(Candidate(), axes, lambda candidate: math.inf)
    assert (best, comparisons) == (Candidate(), ())


class Failing(nn.Module):
    """Runs out of memory on more than ``most`` images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.fc = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("no memory")
        return self.fc(images.mean((2, 3)))


@pytest.mark.parametrize("most", [0, 8])
def test_a_failing_network_ends_the_probe_but_not_the_run(most: int, tmp_path: Path) -> None:
    work, path = replace(WORK, batch_size=64), tmp_path / "probes.json"
    choice = probe(Failing(most), work, Candidate(), ["threads"], budget_s=1000, path=path)
    assert choice is None
    assert not path.exists()


def test_candidates_take_turns() -> None:
    order = []

    def seconds(candidate: Candidate) -> float:
        order.append(candidate.precision)
        return 1.0

    time_in_turns(PRECISIONS, seconds, rounds=2)
    assert order == ["fp32", "bf16"] * 3


def test_the_reason_compares_each_choice_with_the_alternative() -> None:
    quick = {"channels-last": 0.4, "bf16": 0.6, 2: 0.95, "True": 0.5}
    best, comparisons = search(Candidate("contiguous", fold=False), ALL, timer(quick))
    choice = Choice(best, comparisons, 4.2, "2026-11-24")
    assert choice.why() == (
        "channels-last 2.5x as fast as contiguous; bf16 1.7x as fast as fp32; BatchNorm folded 2.0x as fast as "
        "BatchNorm apart; 1 thread, with no clear gain from 2 threads; measured in 4 s"
    )
    assert choice.why("precision") == "bf16 1.7x as fast as fp32; measured in 4 s"
    assert replace(choice, remembered=True).why().endswith("; remembered from 2026-11-24")


@pytest.mark.parametrize(("cores", "counts"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (16, (1, 2, 4, 8, 16))])
def test_threads_are_doubled_up_to_all_cores(cores: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(cores) == counts


def model() -> nn.Module:
    network = registry.create("mobilenet_v3_small", 3, weights="none", input_size=32).model
    freezing.unfreeze(network, "train")
    return network.train()


FIXED: tuple[Axis, ...] = ("layout", "precision", "threads")
OPEN_THREADS: tuple[Axis, ...] = ("layout", "precision")


def measured(
    network: nn.Module,
    path: Path,
    fixed: Collection[Axis] = FIXED,
    budget_s: float = 1000,
    start: Candidate = Candidate(),  # noqa: B008
) -> Choice | None:
    return probe(network, WORK, start, fixed, budget_s=budget_s, path=path)


def test_given_settings_are_kept_and_the_others_are_measured(tmp_path: Path) -> None:
    choice = measured(model(), tmp_path / "probes.json")
    assert choice is not None
    assert (choice.best.layout, choice.best.precision, choice.best.threads) == ("channels-last", "fp32", 1)
    assert len(choice.comparisons) == 1
    assert not choice.remembered


def test_model_threads_and_random_state_are_as_before(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(3600, 2))
    state, random, threads = copy.deepcopy(network.state_dict()), torch.get_rng_state(), torch.get_num_threads()
    strides = [p.stride() for p in network.parameters()]
    measured(network, tmp_path / "probes.json", start=Candidate(threads=2))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert [p.stride() for p in network.parameters()] == strides
    assert all(p.grad is None for p in network.parameters())
    assert all(module.training for module in network.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads


def test_a_choice_is_reused_for_the_same_work_only(tmp_path: Path) -> None:
    path, network = tmp_path / "cache" / "probes.json", model()
    first, again = measured(network, path), measured(network, path, budget_s=0)
    assert first is not None
    assert again == replace(first, remembered=True)
    freezing.unfreeze(network, "frozen")
    assert measured(network, path, budget_s=0) is None


@pytest.mark.slow
def test_the_number_of_threads_is_chosen_anew_in_each_run(tmp_path: Path) -> None:
    path, network = tmp_path / "probes.json", model()
    first = measured(network, path, OPEN_THREADS)
    assert first is not None
    again = measured(network, path, OPEN_THREADS)
    assert again is not None
    assert again.remembered
    assert [each.axis for each in again.comparisons] == [each.axis for each in first.comparisons]
    assert again.best.fold == first.best.fold
    short = measured(network, path, OPEN_THREADS, budget_s=0)
    assert short is not None
    assert 1 <= short.best.threads <= cores()
    assert all(each.axis != "threads" for each in short.comparisons)


def test_choices_are_reused_on_one_core_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_cli.compute.autotune.cores", lambda: 1)
    first, again = (measured(model(), tmp_path / "probes.json", OPEN_THREADS) for _ in range(2))
    assert first is not None
    assert again is not None
    assert again.remembered
    assert replace(again.best, threads=1) == replace(first.best, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"a": 1}', "\x00"])
def test_a_damaged_file_of_choices_is_ignored(damaged: str, tmp_path: Path) -> None:
    path = tmp_path / "probes.json"
    path.write_text(damaged)
    assert measured(model(), path, budget_s=0) is None
    assert measured(model(), path) is not None


def test_an_unreadable_choice_is_measured_again(tmp_path: Path) -> None:
    path, network = tmp_path / "probes.json", model()
    measured(network, path)
    path.write_text(path.read_text().replace('"comparisons"', '"compared"'))
    assert measured(network, path, budget_s=0) is None


def test_short_runs_never_probe(tmp_path: Path) -> None:
    assert measured(model(), tmp_path / "probes.json", budget_s=1.9) is None
    assert not (tmp_path / "probes.json").exists()


def test_a_feature_pass_is_timed_without_gradients(tmp_path: Path) -> None:
    path, work = tmp_path / "probes.json", replace(WORK, trains=False)
    choice = probe(model(), work, Candidate(), ["precision", "threads"], budget_s=1000, path=path)
    assert choice is not None
    assert [each.axis for each in choice.comparisons] == ["layout"]
