"""A head that sees the pooled outputs of the last stages beside its own input.

After Head2Toe (Evci et al. 2022, arXiv 2201.03529): earlier layers have features that a new task needs and the last
layer has dropped. The features come from the same forward pass.
"""

import math
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from tl_cli.contract import Stage
from tl_cli.errors import WeightsError
from tl_cli.models.graph import Watching, cut_points, trace, watch

# The stages at output strides 8, 16 and 32 of most networks.
_RESOLUTIONS = 3
# Of a network whose layers have outputs of one shape (ViT), those after each quarter are the stages.
_QUARTERS = 4


class _Output(NamedTuple):
    """The output of a module through which every value passes."""

    name: str
    shape: tuple[int, ...]
    """Of one image's output."""
    node: fx.Node


def find_stages(model: nn.Module, head: tuple[str, ...], example: Tensor) -> tuple[Stage, ...]:
    """Return the stages whose outputs a head can see, in order; empty where that is not possible.

    A stage is a run of successive layers with outputs of one shape; those of the last three resolutions are returned.
    A stage whose mean is the head's own input already is left out.

    Args:
        head: qualified names of the modules that produce the classes.
        example: one image (1, 3, S, S) on the model's device, which may be meta.
    """
    graphs = trace(model, head)
    if graphs is None or len(head) != 1 or not isinstance(model.get_submodule(head[0]), nn.Linear):
        return ()
    watched = watch(model, graphs[False], example)
    if watched is None or not _is_over_vectors(watched, head[0]):
        return ()
    runs = [list(run) for _, run in groupby(_outputs(graphs[False], watched), key=attrgetter("shape"))]
    stages = [run[-1] for run in runs]
    sizes = list(dict.fromkeys(_resolution(stage.shape) for stage in stages))[-_RESOLUTIONS:]
    while stages and _is_pooled_only(model, stages[-1].node):
        stages.pop()
    longest = max(runs, key=len, default=[])
    if len(stages) < 2 and len(longest) >= _QUARTERS:
        stages = [longest[len(longest) * quarter // _QUARTERS - 1] for quarter in range(1, _QUARTERS)]
    return tuple(
        Stage(module=stage.name, channels=stage.shape[_channel_axis(stage.shape)], axes=_pooled_axes(stage.shape))
        for stage in stages
        if _resolution(stage.shape) in sizes
    )


def join_stages(model: nn.Module, head: tuple[str, ...], stages: tuple[Stage, ...]) -> None:
    """Let the head of a model see the means of these stages' outputs after its own input, in place.

    Names of modules and parameters stay; the head is a new linear layer with more inputs, and the model is of a
    subclass of its class.

    Raises:
        WeightsError: the model has no such stages.
    """
    graphs = trace(model, head) or {}
    own = model.get_submodule(head[0])
    called = [{str(node.target) for node in graph.nodes if node.op == "call_module"} for graph in graphs.values()]
    wanted = {head[0], *(stage.module for stage in stages)}
    if len(head) != 1 or not isinstance(own, nn.Linear) or not called or not wanted <= set.intersection(*called):
        raise WeightsError(f"a {type(model).__name__} does not have the stages {', '.join(s.module for s in stages)}")
    for graph in graphs.values():
        _join(graph, head[0], stages)
    inputs = own.in_features + sum(stage.channels for stage in stages)
    wider = nn.Linear(inputs, own.out_features, own.bias is not None, own.weight.device, own.weight.dtype)
    model.set_submodule(head[0], wider)
    # Generated code refers to modules by their names, so that it runs on the model itself.
    in_training, evaluated = (type(fx.GraphModule(model, graphs[mode])).forward for mode in (True, False))

    def forward(self: nn.Module, images: Tensor) -> Tensor:
        logits: Tensor = in_training(self, images) if self.training else evaluated(self, images)
        return logits

    model.__class__ = type(type(model).__name__, (type(model),), {"forward": forward})


def _outputs(graph: fx.Graph, watched: Watching) -> list[_Output]:
    """Return the maps and tokens that pass alone from one module to the next, in order, before they are pooled."""
    found = []
    for nodes in cut_points(graph, lambda node: True).values():
        value = watched.values[nodes[-1]]
        is_module = len(nodes) == 1 and nodes[0].op == "call_module"
        if is_module and isinstance(value, Tensor) and value.dim() in (3, 4):
            output = _Output(str(nodes[0].target), tuple(value.shape[1:]), nodes[0])
            if math.prod(_resolution(output.shape)) > 1:
                found.append(output)
    return found


def _is_over_vectors(watched: Watching, head: str) -> bool:
    """Whether the head maps one vector per image to the classes."""
    calls = [node for node in watched.values if node.op == "call_module" and node.target == head]
    inputs = [watched.values[node] for call in calls for node in call.all_input_nodes]
    return len(calls) == 1 and len(inputs) == 1 and isinstance(inputs[0], Tensor) and inputs[0].dim() == 2


def _is_pooled_only(model: nn.Module, node: fx.Node) -> bool:
    """Whether no parameter lies between an output and the head."""
    while len(node.users) == 1:
        (node,) = node.users
        if node.op == "call_module" and any(True for _ in model.get_submodule(str(node.target)).parameters()):
            return next(iter(node.users)).op == "output"
    return False


def _channel_axis(shape: tuple[int, ...]) -> int:
    """Return the axis of the channels of a shape without batch: (C, H, W), (H, W, C) or (tokens, C)."""
    return 0 if len(shape) == 3 and shape[1] == shape[2] else -1


def _pooled_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of a batch over which a mean is taken."""
    if len(shape) == 2:
        return (1,)
    return (2, 3) if _channel_axis(shape) == 0 else (1, 2)


def _resolution(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if _channel_axis(shape) == 0 else shape[:-1]


def _join(graph: fx.Graph, head: str, stages: tuple[Stage, ...]) -> None:
    calls = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
    means = []
    for stage in stages:
        node = calls[stage.module]
        # Here and not before the head: a later layer may change the output in place.
        with graph.inserting_after(node):
            means.append(graph.call_method("mean", (node, stage.axes)))
    call = calls[head]
    own = call.args[0]
    with graph.inserting_before(call):
        call.args = (graph.call_function(torch.cat, ([own, *means], 1)),)
