import math

import pytest
import torch

from tests.support.multi_label import MultiLabel
from tests.support.networks import TwoBlocks, randomise_constants
from tl_cli.data.batches import Batch
from tl_cli.errors import UsageError
from tl_cli.inspection.residual_effects import explain, measure_residuals, operands
from tl_cli.inspection.residuals import find_residuals
from tl_cli.models.zoo import registry

# Constant images of value 1, 2 and 3.
IMAGES = torch.stack([torch.full((3, 4, 4), value) for value in (1.0, 2.0, 3.0)])


def test_the_numbers_of_a_hand_written_network_are_those_worked_by_hand() -> None:
    net = TwoBlocks()
    residuals = find_residuals(net, IMAGES)
    batches = [Batch(IMAGES[:2], torch.tensor([1, 1])), Batch(IMAGES[2:], torch.tensor([0]))]
    done = []
    report = measure_residuals(net, residuals, batches, scales=(0.0, 0.5), counted=done.append)
    assert (report.images, done) == (3, list(range(1, 11)))
    one, two = report.strengths
    # x of the first block: 2 channels of 4 x 4 positions with 1, 2 and 3: norms sqrt(32) times 1, 2, 3; F is 2x.
    assert one.x_norm == pytest.approx(2 * math.sqrt(32))
    assert one.branch_norm == pytest.approx(4 * math.sqrt(32))
    assert (one.ratio, one.cosine, one.share) == pytest.approx((2, 1, 2 / 3))
    # The second gets 3x, F has half the norm and is orthogonal: 1/4 of 5/4 of the energy.
    assert two.x_norm == pytest.approx(6 * math.sqrt(32))
    assert two.ratio == pytest.approx(0.5)
    assert two.cosine == pytest.approx(0, abs=1e-6)
    assert two.share == pytest.approx(0.2)
    # Logits: x adds 6v to class 0, F of the second block 9v to class 1, so class 1 is always predicted.
    assert report.accuracy == pytest.approx(2 / 3)
    losses = [
        math.log(1 + math.exp(-3 * v)) if label else math.log(1 + math.exp(3 * v))
        for v, label in ((1, 1), (2, 1), (3, 0))
    ]
    assert report.loss == pytest.approx(sum(losses) / 3, rel=1e-5)
    first, second = report.effects
    # Without the first branch everything is a third as large, and the predictions do not change.
    assert (first[0].scale, first[0].kept, first[0].accuracy) == (0.0, 1.0, pytest.approx(2 / 3))
    # Without the second one all predictions change; with half of it, 6v remain against 4.5v.
    assert (second[0].kept, second[0].accuracy) == (0.0, pytest.approx(1 / 3))
    assert (second[1].scale, second[1].kept, second[1].accuracy) == (0.5, 0.0, pytest.approx(1 / 3))
    divergences = []
    for v in (1, 2, 3):
        was, now = torch.tensor([6.0 * v, 9.0 * v]).log_softmax(0), torch.tensor([6.0 * v, 0.0]).log_softmax(0)
        divergences.append((was.exp() * (was - now)).sum().item())
    assert second[0].divergence == pytest.approx(sum(divergences) / 3, rel=1e-5)


def test_without_labels_there_is_no_accuracy() -> None:
    net = TwoBlocks()
    residuals = find_residuals(net, IMAGES)
    report = measure_residuals(net, residuals, [Batch(IMAGES, torch.full((3,), -1))], scales=(0.0,))
    assert (report.accuracy, report.loss) == (None, None)
    effect = report.effects[1][0]
    assert (effect.accuracy, effect.loss, effect.p_value, effect.kept) == (None, None, None, 0.0)
    assert any("two changes the probabilities most (0% of the predictions stay)" in line for line in explain(report))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "timm/test_vit", "timm/test_maxvit"])
def test_a_branch_scaled_by_one_changes_nothing(name: str) -> None:
    size = registry.about(name).input_size
    classifier = registry.create(name, 4, weights="none", input_size=size)
    randomise_constants(classifier.model)
    images = torch.randn(2, 3, size, size)
    residuals = find_residuals(classifier.model, images, classifier.head)
    report = measure_residuals(classifier.model, residuals, [Batch(images, torch.tensor([0, 1]))], scales=(1.0, 0.0))
    for whole, without in report.effects:
        assert (whole.kept, whole.accuracy, whole.loss) == (1.0, report.accuracy, report.loss)
        assert whole.divergence == pytest.approx(0, abs=1e-7)
        assert without.loss != report.loss


def test_removing_a_branch_equals_a_network_whose_branch_is_zero() -> None:
    classifier = registry.create("resnet18", 4, weights="none")
    torch.nn.init.normal_(classifier.model.fc.weight)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    residuals = find_residuals(classifier.model, images)
    report = measure_residuals(classifier.model, residuals, [Batch(images, labels)], scales=(0.0,))
    index = [each.name for each in residuals].index("layer2.1")
    with torch.no_grad():
        # Its last norm returns zero, so the block returns x.
        torch.nn.init.zeros_(classifier.model.layer2[1].bn2.weight)
        torch.nn.init.zeros_(classifier.model.layer2[1].bn2.bias)
        loss = torch.nn.functional.cross_entropy(classifier.model(images), labels)
    assert report.effects[index][0].loss == pytest.approx(loss.item(), rel=1e-5)


def test_a_difference_is_significant_only_with_enough_images() -> None:
    net = TwoBlocks()
    residuals = find_residuals(net, IMAGES)
    for count, is_significant in ((3, False), (40, True)):
        images = IMAGES[:1].repeat(count, 1, 1, 1)
        report = measure_residuals(net, residuals, [Batch(images, torch.ones(count, dtype=torch.long))], scales=(0.0,))
        assert report.effects[1][0].accuracy == 0
        assert [each[0].is_significant for each in report.effects] == [False, is_significant]
    sentences = " ".join(explain(report))
    assert "two costs most, 100.0 points" in sentences
    assert "1 of 2 blocks make no significant difference" in sentences


def test_a_branch_of_zeros_has_no_direction() -> None:
    net = TwoBlocks()
    torch.nn.init.zeros_(net.one.twice.weight)
    residuals = find_residuals(net, IMAGES)
    strength = measure_residuals(net, residuals, [Batch(IMAGES, torch.zeros(3, dtype=torch.long))]).strengths[0]
    assert (strength.ratio, strength.cosine, strength.share) == (0, None, 0)


def test_another_network_than_the_traced_one_is_refused() -> None:
    residuals = find_residuals(TwoBlocks(), IMAGES)
    other = registry.create("resnet18", 4, weights="none").model
    batch = Batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    with pytest.raises(UsageError, match="the forward pass differs"):
        measure_residuals(other, residuals, [batch])
    with pytest.raises(UsageError, match="the forward pass differs"):
        operands(registry.create("squeezenet1_1", 4, weights="none").model, residuals, batch.inputs)


def test_windows_of_one_image_are_counted_with_it() -> None:
    """Swin's and MaxViT's attention work on windows: the first dimension of a tensor may be images times windows."""
    classifier = registry.create("timm/test_maxvit", 4, weights="none")
    randomise_constants(classifier.model)
    size = registry.about("timm/test_maxvit").input_size
    images = torch.randn(2, 3, size, size)
    residuals = find_residuals(classifier.model, images, classifier.head)
    both = measure_residuals(classifier.model, residuals, [Batch(images, torch.tensor([0, 1]))])
    apart = measure_residuals(classifier.model, residuals, [Batch(image[None], torch.tensor([0])) for image in images])
    for one, other in zip(both.strengths, apart.strengths, strict=True):
        assert one.x_norm == pytest.approx(other.x_norm, rel=1e-4)
        assert one.ratio == pytest.approx(other.ratio, rel=1e-4)


def test_decisions_and_losses_follow_from_the_task() -> None:
    net = TwoBlocks()
    residuals = find_residuals(net, IMAGES)
    with torch.no_grad():
        logits = net(IMAGES)
    decided = (logits > 0).long()
    report = measure_residuals(net, residuals, [Batch(IMAGES, decided)], scales=(1.0, 0.0), task=MultiLabel())
    assert report.accuracy == 1.0
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, decided.float())
    assert report.loss == pytest.approx(expected.item(), rel=1e-5)
    whole, without = report.effects[1]
    assert (whole.kept, whole.accuracy, whole.divergence) == (1.0, 1.0, 0.0)
    assert without.divergence > 0
