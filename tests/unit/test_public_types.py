"""Public functions say the types of what they take and return."""

import ast

from tests.support.paths import ROOT


def public_functions():
    """Yields (place, definition) of functions and methods that no underscore hides, and of constructors and calls."""
    for path in sorted((ROOT / "mossa_jax").rglob("*.py")):
        stack = list(ast.parse(path.read_text(encoding="utf-8")).body)
        while stack:
            node = stack.pop()
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                stack += node.body
            elif isinstance(node, ast.FunctionDef):
                if not node.name.startswith("_") or node.name in ("__init__", "__call__"):
                    yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def test_every_parameter_and_result_of_a_public_function_has_a_type():
    untyped = []
    for place, function in public_functions():
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        parameters = [one for one in named if one.arg not in ("self", "cls")]
        untyped += [f"{place}({one.arg})" for one in parameters if one.annotation is None]
        if function.returns is None and function.name != "__init__":
            untyped.append(f"{place} -> ?")
    assert not untyped
