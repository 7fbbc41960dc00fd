"""No file executes code from data: no pickle, no eval."""

import ast

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "__import__"}


def unsafe(node: ast.AST) -> str | None:
    """Return what is unsafe about a syntax node, or None."""
    if isinstance(node, ast.Import):
        return next((alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES), None)
    if isinstance(node, ast.ImportFrom):
        return node.module if (node.module or "").split(".")[0] in UNSAFE_MODULES else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
        return node.func.id
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
        return None if isinstance(node.value, ast.Constant) and node.value.value is False else "allow_pickle"
    return None


def test_no_pickle_and_no_eval_anywhere(sources) -> None:
    found = [
        f"{source.path}:{getattr(node, 'lineno', '?')}: {what}"
        for source in sources
        for node in ast.walk(source.tree)
        if (what := unsafe(node))
    ]
    assert found == []


def test_the_scan_detects_unsafe_code() -> None:
    programs = (
        "import pickle",
        "from marshal import loads",
        "import joblib.externals",
        "eval('1')",
        "exec('1')",
        "numpy.load('x', allow_pickle=True)",
    )
    for program in programs:
        assert any(unsafe(node) for node in ast.walk(ast.parse(program))), program
    assert not any(unsafe(node) for node in ast.walk(ast.parse("model.eval(); numpy.load('x', allow_pickle=False)")))
