from collections.abc import Iterator

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tl_cli.errors import UsageError
from tl_cli.inspection.summary import Node, head_reason, summarize
from tl_cli.models.list import counting
from tl_cli.models.zoo import registry


def all_of(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from all_of(child)


@pytest.mark.slow
def test_the_tree_of_efficientnet_b0_is_right() -> None:
    root = summarize("efficientnet_b0", 10, 224)
    assert (root.parameters, root.trainable, root.output) == (4_020_358, 12_810, (1, 10))
    features = root.children[0]
    assert (features.name, features.output) == ("features", (1, 1280, 7, 7))
    assert [child.name for child in root.children[2].children if child.is_head] == ["classifier.1"]
    assert sum(child.parameters for child in root.children) == root.parameters
    assert sum(child.multiply_adds for child in root.children) == root.multiply_adds
    assert sum(child.activation_bytes for child in root.children) == root.activation_bytes
    # As published (Tan & Le 2019, table 1): 0.39 billion.
    assert round(summarize("efficientnet_b0", 1000, 224).multiply_adds / 1e9, 2) == 0.39
    assert root.children[2].children[1].multiply_adds == 12_800
    (reason,) = head_reason(root)
    assert reason.startswith("classifier.1 (Linear): its parameters change shape")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*registry.names("torchvision")[::6], "timm/test_vit", "timm/levit_128s"])
def test_macs_match_other_sources_and_parts_add_up(name: str) -> None:
    size = registry.about(name).input_size
    root = summarize(name, 10, size, registry.options_for(name, size))
    counts = counting.count(name, size, 10)
    assert counts is not None
    assert (root.parameters, root.multiply_adds) == (counts.parameters, counts.multiply_adds)
    for node in all_of(root):
        assert sum(child.multiply_adds for child in node.children) <= node.multiply_adds
        assert sum(child.activation_bytes for child in node.children) <= node.activation_bytes
    assert root.activation_bytes > 0


def bytes_saved_by_autograd(model: torch.nn.Module, images: torch.Tensor) -> int:
    """Return the bytes that autograd saves in a forward pass on the CPU, without parameters, buffers and images."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), images)}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    return sum(kept.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 64),
        ("mobilenet_v3_small", 64),
        ("swin_t", 64),
        ("timm/swin_tiny_patch4_window7_224", 224),
        # Fused attention, which saves no attention matrix.
        ("vit_b_16", 64),
        ("timm/vit_tiny_patch16_224", 96),
        # Weights that are standardised once per step.
        ("timm/nf_regnet_b0", 64),
        ("timm/resnetv2_50x1_bit", 64),
        ("timm/nfnet_f0", 64),
    ],
)
def test_activation_memory_is_what_autograd_keeps_per_image(name: str, size: int) -> None:
    options = registry.options_for(name, size)
    model = registry.build(name, 10, options).eval()
    two, four = (bytes_saved_by_autograd(model, torch.rand(count, 3, size, size)) for count in (2, 4))
    assert summarize(name, 10, size, options).activation_bytes == pytest.approx((four - two) / 2, rel=0.05)


def test_fused_attention_counts_its_two_matrix_products() -> None:
    """On the meta device, where operations are counted, attention is not fused; on the CPU it is."""
    name = "timm/vit_tiny_patch16_224"
    model = registry.build(name, 10, registry.options_for(name, 96)).eval()
    with torch.no_grad(), counting.Counting() as counted:
        model(torch.rand(1, 3, 96, 96))
    on_meta = counting.count(name, 96, 10)
    assert on_meta is not None
    assert counted.flops == 2 * on_meta.multiply_adds


@pytest.mark.slow
def test_the_cost_of_a_list_of_blocks_is_the_sum_of_theirs() -> None:
    root = summarize("maxvit_t", 10, 224)
    blocks = next(child for child in root.children if child.name == "blocks")
    assert blocks.output is None
    assert blocks.multiply_adds == sum(child.multiply_adds for child in blocks.children) > 5e9
    assert blocks.activation_bytes == sum(child.activation_bytes for child in blocks.children) > 1e8


def test_an_input_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"does not accept images of \(50, 50\)"):
        summarize("vit_b_16", 10, 50)
