"""Small networks with residuals of known values, others whose additions are not residuals, and a check of cut networks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from tl_cli.contract import Preprocessing, WeightsTag
from tl_cli.models.classifier import Classifier
from tl_cli.models.graph import Cut


def pointwise(matrix: list[list[float]]) -> nn.Conv2d:
    """A 1 x 1 convolution that applies a matrix to the channels."""
    weight = torch.tensor(matrix)
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
    conv.weight = nn.Parameter(weight[:, :, None, None])
    return conv


class Doubling(nn.Module):
    """x + 2x."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = pointwise([[2.0, 0.0], [0.0, 2.0]])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.twice(x)


class Turning(nn.Module):
    """Px + QQx, of four channels: QQx is orthogonal to Px and has half its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fit = pointwise([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
        self.first = pointwise([[0.0, 0.0], [0.0, 0.0], [0.5, 0.0], [0.0, 0.5]])
        self.act = nn.Identity()
        self.second = pointwise(
            [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.act(self.first(x)))
        out += self.fit(x)
        return out


class TwoBlocks(nn.Module):
    """Three channels to two, a doubling block, a turning block, the mean of each channel, a head of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = pointwise([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        self.one = Doubling()
        self.two = Turning()
        self.head = nn.Linear(4, 2, bias=False)
        # Class 0 sums x of the second block, class 1 three times F.
        self.head.weight = nn.Parameter(torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 3.0, 3.0]]))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.stem(images))).mean((2, 3)))


class Built(nn.Module):
    """A network of one function between a stem and a head."""

    def __init__(self, middle: Callable[["Built", Tensor], Tensor]) -> None:
        super().__init__()
        self.middle = middle
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.narrow = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.positions = nn.Parameter(torch.randn(8, 1, 1))
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.bias = nn.Parameter(torch.randn(64, 64))
        self.relative = nn.Parameter(torch.randn(8, 64))
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.middle(self, self.stem(images)).mean((2, 3)))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def maps(x: Tensor) -> Tensor:
    return x.transpose(1, 2).unflatten(2, (8, 8))


def attention(net: Built, x: Tensor) -> Tensor:
    t = tokens(x)
    scores = net.q(t) @ net.k(t).transpose(1, 2) + net.bias
    scores = scores + torch.zeros(64, 64)
    return maps(net.out(scores.softmax(2) @ net.v(t)))


def relative_attention(net: Built, x: Tensor) -> Tensor:
    t = tokens(x)
    q = net.q(t)
    return maps(net.out((q @ net.k(t).transpose(1, 2) + q @ net.relative).softmax(2) @ net.v(t)))


def rotated(net: Built, x: Tensor) -> Tensor:
    cos, sin = torch.rand(8, 1, 1), torch.rand(8, 1, 1)
    turned = torch.cat([-x[:, 4:], x[:, :4]], 1)
    return net.a(x * cos + turned * sin)


def two_heads(net: Built, x: Tensor) -> Tensor:
    return net.narrow(x) + F.adaptive_avg_pool2d(net.a(x), 1)


WITHOUT: dict[str, Callable[[Built, Tensor], Tensor]] = {
    "position embedding": lambda net, x: net.a(x + net.positions),
    "bias and mask of attention": attention,
    "relative positions that depend on the query": relative_attention,
    "rotated positions": rotated,
    "two branches of equal rank": lambda net, x: net.norm(net.a(x)) + net.norm(net.narrow(x)),
    "three branches of equal rank": lambda net, x: net.a(x) + net.narrow(x) + net.b(x),
    "two long branches": lambda net, x: net.c(net.b(net.a(x))) + net.a(net.b(net.c(x))),
    "an LSTM": lambda net, x: maps(net.lstm(tokens(x))[0]),
    "a number": lambda net, x: net.a(x + 3.0) + torch.ones(1),
    "twice the same": lambda net, x: net.a(x + x),
    "a mean": lambda net, x: net.a(x * (x + 3).clamp(0, 6) / 6),
    "concatenation": lambda net, x: torch.cat([net.a(x)[:, :4], x[:, :4]], 1),
}

WITH: dict[str, tuple[Callable[[Built, Tensor], Tensor], list[tuple[str, bool]]]] = {
    "identity": (lambda net, x: x + net.b(net.a(x)), [("identity", True)]),
    "the branch first": (lambda net, x: net.b(net.a(x)) + x, [("identity", False)]),
    "in place": (lambda net, x: net.b(net.a(x)).add_(x), [("identity", False)]),
    "a multiple": (lambda net, x: torch.add(x, net.a(x), alpha=0.5), [("identity", True)]),
    "projection": (lambda net, x: net.narrow(x) + net.b(net.a(x).relu()), [("projection", True)]),
    "separable projection": (
        lambda net, x: net.c(net.narrow(x)) + net.b(net.a(net.c(net.b(x)))),
        [("projection", True)],
    ),
    "pooling": (
        lambda net, x: F.max_pool2d(x, 2) + F.conv2d(x, net.a.weight, stride=2, padding=1),
        [("pooling", True)],
    ),
    "padding of channels": (
        lambda net, x: F.pad(x[:, :4], (0, 0, 0, 0, 0, 4)) + net.b(net.a(x)),
        [("identity", True)],
    ),
    "identity of a norm": (lambda net, x: net.norm(x) + net.a(x), [("identity", True)]),
    "one after the other": (
        lambda net, x: (y := x + net.a(x)) + net.b(net.norm(y)),
        [("identity", True), ("identity", True)],
    ),
    "a branch of several sizes": (lambda net, x: x + (net.a(x) + net.narrow(x)), [("identity", True)]),
    "pooling as the branch": (
        lambda net, x: x + (F.avg_pool2d(net.norm(x), 3, 1, 1) - net.norm(x)),
        [("identity", True)],
    ),
    "broadcast": (lambda net, x: x + net.narrow(F.adaptive_avg_pool2d(x, 1)), [("identity", True)]),
    "attention": (lambda net, x: x + attention(net, x), [("identity", True)]),
}


def classifier_of(model: nn.Module, head: str = "head") -> Classifier:
    return Classifier("toy", model, (head,), Preprocessing(resize=8, crop=8), WeightsTag(name="none"))


def randomise_constants(model: nn.Module) -> None:
    """Randomise what is initialised with zeros, ones or 1e-6: norms, biases, layer scales, the head."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or parameter.shape[1:].numel() == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=random) + 0.5)
            elif not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)


def assert_equals_the_whole(cut: Cut, model: nn.Module, images: torch.Tensor, trained: list[nn.Parameter]) -> None:
    """Both parts of a network together have its logits in training mode, and the gradients of these parameters."""
    model.train()
    torch.manual_seed(0)
    whole = model(images)
    expected = torch.autograd.grad(whole.square().sum(), trained, allow_unused=True)
    with torch.inference_mode():
        passed = cut.prefix(images)
    assert passed.shape == (len(images), *cut.shape)
    torch.manual_seed(0)
    parts = cut.tail.train()(passed.clone())
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)
    got = torch.autograd.grad(parts.square().sum(), trained, allow_unused=True)
    assert [g is None for g in got] == [w is None for w in expected]
    for one, other in zip(got, expected, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2 * float(other.abs().max()) + 1e-4)
