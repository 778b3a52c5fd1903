"""The order in which recorded nodes depend on each other."""

from __future__ import annotations

from collections.abc import Iterable

from pyattn.tensor import Node, Tensor


def topological(outputs: Iterable[Tensor]) -> list[Node]:
    """Return every node that the outputs depend on, inputs before the nodes that use them."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(tensor.node, False) for tensor in outputs]
    while stack:
        node, ready = stack.pop()
        if node is None or (not ready and node in seen):
            continue
        if ready:
            order.append(node)
            continue
        seen.add(node)
        stack.append((node, True))
        stack.extend((x.node, False) for x in reversed(node.inputs) if x is not None)
    return order
