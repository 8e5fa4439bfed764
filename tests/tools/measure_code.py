"""How packed and how long the code is: a line per module, then the package.

python -m tests.tools.measure_code [FOLDER]

Lines of code and tokens a line without docstrings, comments and blank lines; functions, and those
with a body of more than 30 such lines.
"""

import ast
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONG = 30
NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.ENCODING,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def measure(path):
    """Count lines, tokens, functions and long functions of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    with path.open("rb") as file:
        tokens = [t for t in tokenize.tokenize(file.readline) if t.type not in NO_CODE]
    tokens = [token for token in tokens if token.start[0] not in docstrings]
    lines = {n for token in tokens for n in range(token.start[0], token.end[0] + 1)}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    bodies = [range(node.body[0].lineno, node.end_lineno + 1) for node in functions]
    long = [body for body in bodies if len(lines.intersection(body)) > LONG]
    return len(lines), len(tokens), len(functions), len(long)


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "unetseg"
    total = [0, 0, 0, 0]
    for path in [*sorted(folder.rglob("*.py")), None]:
        counts = measure(path) if path else total
        name = path.relative_to(folder).as_posix() if path else "all"
        lines, tokens, functions, long = counts
        if path:
            total = [a + b for a, b in zip(total, counts, strict=True)]
        rate = tokens / max(1, lines)
        sizes = f"{name:28} {lines:5} lines {rate:5.1f} tokens a line"
        print(f"{sizes} {functions:4} functions {long} long")


if __name__ == "__main__":
    main()
