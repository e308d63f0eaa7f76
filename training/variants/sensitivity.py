"""Which parts of a graph are better left in float."""

from collections.abc import Sequence

from onnx import NodeProto


def groups(nodes: Sequence[NodeProto], chosen: set[str]) -> list[list[str]]:
    """The names of `chosen` in `nodes`, in order: what lies between two attentions, or between two
    convolutions with a stride, belongs together."""
    found: list[list[str]] = [[]]
    for node in nodes:
        if node.op_type == "Attention" or _strided(node):
            found.append([])
        if node.name in chosen:
            found[-1].append(node.name)
    return [group for group in found if group]


def _strided(node: NodeProto) -> bool:
    strides = [one.ints for one in node.attribute if one.name == "strides"]
    return node.op_type == "Conv" and any(step > 1 for ints in strides for step in ints)
