"""ONNX: nodes and weights in a fixed order."""

from itertools import permutations

from onnx import TensorProto, helper

from pipeline.serving import to_onnx


def test_branches_in_another_order_give_the_same_graph():
    images, result = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("images", "result")
    )
    branches = [helper.make_node(kind, ["images"], [kind]) for kind in ("Abs", "Neg", "Exp")]
    total = helper.make_node("Sum", ["Neg", "Exp", "Abs", "Neg"], ["result"])
    graphs = set()
    for order in permutations(branches):
        graph = helper.make_graph([*order, total], "graph", [images], [result])
        to_onnx._sort_nodes(graph)
        to_onnx._rename(graph)
        assert [node.op_type for node in graph.node] == ["Neg", "Exp", "Abs", "Sum"]
        graphs.add(graph.SerializeToString(deterministic=True))
    assert len(graphs) == 1
