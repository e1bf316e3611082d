"""The graph of a network at the level of its layers, and its cut into a frozen prefix and a trainable tail."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from operator import attrgetter, getitem
from typing import Any

import torch
from torch import Tensor, fx, nn

from tl_cli.models.classifier import Classifier
from tl_cli.models.freezing import in_eval_mode
from tl_cli.models.layers import units_of
from tl_cli.models.macs import Counting

# Parts of the class names of modules that are random in training mode.
_STOCHASTIC = ("Drop", "StochasticDepth", "RReLU")
_TOLERANCE = 1e-3
# A map and the pooled outputs of the stages before it.
_MOST_PASSING = 16
# A third-party forward pass may raise any of these when it is traced or run in parts.
_FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, AssertionError)


@dataclass(frozen=True, slots=True)
class Cut:
    """A network in two parts that share its modules: ``tail(prefix(images))`` equals its logits.

    Attributes:
        prefix: maps images (B, 3, S, S) to one tensor of features (B, ...), always in eval mode; frozen. Where vectors
            pass beside a map (pooled stages), all are joined to rows (B, D).
        tail: maps features to logits (B, num_classes), in training and eval mode.
        after: qualified name of the last module of the prefix.
        shape: of one image's features.
        is_map: whether the tail computes on a map, which needs memory, and not on vectors only.
        prefix_cost: MACs of the prefix per image.
        tail_cost: MACs of the tail per image.
        code: source text of the prefix; prefixes with equal code and equal weights give equal features.
    """

    prefix: nn.Module
    tail: nn.Module
    after: str
    shape: tuple[int, ...]
    is_map: bool
    prefix_cost: int
    tail_cost: int
    code: str


class Network:
    """A classifier with its traced graph, which can be cut after its frozen layers.

    Args:
        example: a batch of one image (1, 3, S, S) on the model's device.
    """

    def __init__(self, classifier: Classifier, example: Tensor) -> None:
        self._classifier = classifier
        # Two different images reveal layers that mix images, or whose output has no row per image.
        noise = torch.randn((2, *example.shape[1:]), generator=torch.Generator().manual_seed(0))
        self._example = noise.to(example)
        self._graphs = trace(classifier.model, classifier.head)
        self._run = watch(classifier.model, self._graphs[False], self._example) if self._graphs else None

    def cut(self) -> Cut | None:
        """Return the network cut after its longest frozen prefix; None where it cannot be cut.

        A network that cannot be traced is cut before its head, if everything else is frozen.
        """
        model = self._classifier.model
        with in_eval_mode(model):
            try:
                cut = self._cut_graph() if self._graphs else _cut_before_head(self._classifier, self._example)
                return cut if cut and self._is_equal(cut) else None
            except _FORWARD_ERRORS:
                return None

    def _cut_graph(self) -> Cut | None:
        assert self._graphs is not None
        if self._run is None:
            return None
        model, values = self._classifier.model.train(), self._run.values
        evaluated = cut_points(self._graphs[False], lambda node: node in values and _is_constant(node, model))
        trained = cut_points(self._graphs[True], lambda node: _is_constant(node, model))
        for key, nodes in reversed(evaluated.items()):
            if key in trained and self._can_pass([values[node] for node in nodes]):
                return self._build(nodes, trained[key], self._run)
        return None

    def _can_pass(self, values: list[Any]) -> bool:
        """Whether these values have a row per image, and at most one of them more than a vector."""
        images = len(self._example)
        if not all(isinstance(value, Tensor) and value.dim() and len(value) == images for value in values):
            return False
        if len(values) == 1:
            return True
        return all(value.dim() > 1 for value in values) and sum(value.dim() > 2 for value in values) <= 1

    def _build(self, last: Sequence[fx.Node], last_in_training: Sequence[fx.Node], run: "Watching") -> Cut | None:
        assert self._graphs is not None
        model, images = self._classifier.model, len(self._example)
        shapes = [tuple(run.values[node].shape[1:]) for node in last]
        before, after = _split(self._graphs[False], last, shapes)
        _, training = _split(self._graphs[True], last_in_training, shapes)
        modules = [node.target for node in before.nodes if node.op == "call_module"]
        if not modules:
            return None
        prefix = fx.GraphModule(model, before)
        prefix_cost = sum(run.costs[node] for node in _needed(self._graphs[False], last, ()))
        return Cut(
            prefix=_Evaluating(prefix),
            tail=_Tail(fx.GraphModule(model, training), fx.GraphModule(model, after)),
            after=str(modules[-1]),
            shape=shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),),
            is_map=any(len(shape) > 1 for shape in shapes),
            prefix_cost=prefix_cost // images,
            tail_cost=(sum(run.costs.values()) - prefix_cost) // images,
            code=f"{self._classifier.name} {self._classifier.build_options}\n{prefix.code}",
        )

    def _is_equal(self, cut: Cut) -> bool:
        """Whether both parts together give the logits of the whole, in training and eval mode, with a random head."""
        model, device = self._classifier.model, self._example.device
        head = [parameter for module in self._classifier.head_modules for parameter in module.parameters()]
        with _restored([*head, *model.buffers()]), torch.no_grad():
            # A new head is zero, so its input would not matter.
            _randomize(head)
            for training in (False, True):
                model.train(training)
                with _seeded(device):
                    whole = model(self._example)
                cut.tail.train(training)
                with _seeded(device):
                    parts = cut.tail(cut.prefix(self._example))
                if whole.shape != parts.shape:
                    return False
                scale = whole.abs().max().clamp(min=1e-6)
                if not bool(((whole - parts).abs().max() <= _TOLERANCE * scale).item()):
                    return False
        return True


class _Evaluating(nn.Module):
    """Runs a network in eval mode, whatever mode it is set to."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return features."""
        self.network.eval()
        features: Tensor = self.network(images)
        return features


class _Tail(nn.Module):
    """The layers after a cut, as traced in training or in eval mode, depending on its own mode."""

    def __init__(self, in_training: nn.Module, evaluated: nn.Module) -> None:
        super().__init__()
        self.in_training = in_training
        self.evaluated = evaluated

    def forward(self, features: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.in_training(features) if self.training else self.evaluated(features)
        return logits


def _without(model: nn.Module, name: str) -> nn.Module:
    """Return a network in which the module of that name is an identity; it shares all other modules with the model.

    The model is not modified, since several threads may be using it.
    """
    first, _, rest = name.partition(".")
    copied = copy(model)
    copied.__dict__.pop("train", None)  # of a frozen module, bound to the original
    inside = model.get_submodule(first)
    copied._modules = {**model._modules, first: _without(inside, rest) if rest else nn.Identity()}
    return copied


class _LayerTracer(fx.Tracer):
    """Does not trace into layers, whose code may branch or depend on the training mode."""

    def __init__(self, leaves: set[str]) -> None:
        super().__init__()
        self._leaves = leaves

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Whether a module is one node of the graph."""
        return name in self._leaves or super().is_leaf_module(module, name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Return the images as the one argument; others keep their defaults (an attention mask, in timm)."""
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]


class Watching(fx.Interpreter):
    """Records every node's value and MACs.

    Attributes:
        values: by node.
        costs: MACs by node, for the whole batch.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.values: dict[fx.Node, Any] = {}
        self.costs: dict[fx.Node, int] = {}

    def run_node(self, node: fx.Node) -> Any:
        """Return the value of a node, and record it."""
        with Counting() as counting:  # type: ignore[no-untyped-call]
            value = super().run_node(node)
        self.values[node], self.costs[node] = value, counting.flops // 2
        return value


def trace(model: nn.Module, head: tuple[str, ...]) -> dict[bool, fx.Graph] | None:
    """Return the graphs in training (True) and eval mode (False), whose nodes are layers and the operations between.

    Args:
        head: qualified names of the modules that produce the classes.

    Returns:
        None where the forward pass depends on the data, or cannot be traced for another reason.
    """
    leaves = {*units_of(model, head), *head}
    with in_eval_mode(model):
        try:
            return {mode: _LayerTracer(leaves).trace(model.train(mode)) for mode in (True, False)}
        except (fx.proxy.TraceError, NameError, *_FORWARD_ERRORS):
            return None


def watch(model: nn.Module, graph: fx.Graph, example: Tensor) -> Watching | None:
    """Return the values and costs of a run in eval mode; None where it fails.

    Args:
        example: images (B, 3, S, S) on the model's device, which may be meta.
    """
    watching = Watching(model, graph)
    with in_eval_mode(model), torch.no_grad():
        try:
            watching.run(example)
        except _FORWARD_ERRORS:
            return None
    return watching


def cut_points(graph: fx.Graph, is_constant: Callable[[fx.Node], bool]) -> dict[object, tuple[fx.Node, ...]]:
    """Return for each position in the frozen start of a graph the nodes whose values are used after it.

    A key is made of the calls up to the position, so that it identifies the same one in the graphs of both modes.
    Positions after which the images themselves or many values are used are left out.
    """
    nodes = list(graph.nodes)
    last_use = {node: max((nodes.index(user) for user in node.users), default=-1) for node in nodes}
    called: list[object] = []
    alive: list[fx.Node] = []
    since: list[object] = []
    points: dict[object, tuple[fx.Node, ...]] = {}
    for index, node in enumerate(nodes):
        if node.op == "output" or not is_constant(node):
            break
        if node.op != "get_attr":
            alive.append(node)
        if node.op == "call_module":
            called.append(node.target)
            since = []
        elif node.op != "get_attr":
            since.append(str(node.target))
        alive = [value for value in alive if last_use[value] > index]
        if 0 < len(alive) <= _MOST_PASSING and all(value.op != "placeholder" for value in alive):
            points[tuple(called), tuple(since)] = tuple(alive)
    return points


def _is_constant(node: fx.Node, model: nn.Module) -> bool:
    """Whether a node of a model in training mode gives the same output for the same image in every step."""
    if node.op == "get_attr":
        value = attrgetter(str(node.target))(model)
        return not (isinstance(value, Tensor) and value.requires_grad)
    if node.op != "call_module":
        return True
    module = model.get_submodule(str(node.target))
    if any(parameter.requires_grad for parameter in module.parameters()):
        return False
    return not any(part.training and _is_random_or_updates(part) for part in module.modules())


def _is_random_or_updates(part: nn.Module) -> bool:
    """Whether a module in training mode is random, or updates statistics."""
    named = type(part).__name__
    return any(name in named for name in _STOCHASTIC) or any(True for _ in part.buffers(recurse=False))


def _split(graph: fx.Graph, passing: Sequence[fx.Node], shapes: Sequence[tuple[int, ...]]) -> tuple[fx.Graph, fx.Graph]:
    """Return the graph up to these nodes, and the graph from them to the output.

    Several values are joined to rows (B, D) in between.

    Args:
        shapes: of one image's value of each node.
    """
    (output,) = (node for node in graph.nodes if node.op == "output")
    before, after = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in _needed(graph, passing, ()):
        copies[node] = before.node_copy(node, copies.__getitem__)
    features = after.placeholder("features")
    if len(passing) == 1:
        before.output(copies[passing[0]])
        copies = {passing[0]: features}
    else:
        rows = [before.call_method("flatten", (copies[node], 1)) for node in passing]
        before.output(before.call_function(torch.cat, (rows, 1)))
        parts = after.call_method("split", (features, [math.prod(shape) for shape in shapes], 1))
        copies = {
            node: after.call_method("unflatten", (after.call_function(getitem, (parts, index)), 1, shape))
            for index, (node, shape) in enumerate(zip(passing, shapes, strict=True))
        }
    for node in _needed(graph, (output,), passing):
        copies[node] = after.node_copy(node, copies.__getitem__)
    return before, after


def _needed(graph: fx.Graph, targets: Sequence[fx.Node], given: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the nodes from which the targets are computed, in order, with the targets and without the given ones."""
    needed, waiting = {*targets}, [*targets]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node not in needed and node not in given:
                needed.add(node)
                waiting.append(node)
    return [node for node in graph.nodes if node in needed]


def _cut_before_head(classifier: Classifier, example: Tensor) -> Cut | None:
    if len(classifier.head) != 1:
        return None
    (head,) = classifier.head_modules
    inside = {id(p) for p in head.parameters()}
    if any(p.requires_grad for p in classifier.model.parameters() if id(p) not in inside):
        return None
    (name,) = classifier.head
    classifier.model.eval()
    prefix = _without(classifier.model, name).eval()
    with torch.no_grad(), Counting() as counting:  # type: ignore[no-untyped-call]
        features = prefix(example)
    if not isinstance(features, Tensor) or len(features) != len(example):
        return None
    return Cut(
        prefix=_Evaluating(prefix),
        tail=head,
        after=f"all but {name}",
        shape=tuple(features.shape[1:]),
        is_map=features.dim() > 2,
        prefix_cost=counting.flops // 2 // len(example),
        tail_cost=sum(p.numel() for p in head.parameters()),
        code=f"{classifier.name} without {name}",
    )


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Use the same random numbers in each such block; the random state is restored afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(0)
        if device.type == "cuda":
            torch.cuda.manual_seed(0)
        yield


def _randomize(parameters: Iterable[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.copy_(torch.randn(parameter.shape, generator=generator))


@contextmanager
def _restored(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restore the values of tensors when the block ends."""
    originals = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in originals:
                tensor.copy_(value)
