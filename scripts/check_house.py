"""Check the rules of the house that no linter knows: its plain English, its names, its size.

Prints one line for each violation, and exits with 1 if there is any.
"""

import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("taillift", "models", "training", "service")
TEXTS = (*CODE, "tests", "benchmarks", "scripts", "docs", "docker", ".ci")
SUFFIXES = {".py", ".md", ".html", ".js", ".yaml", ".yml", ".json", ".toml", ".sh", ""}
GENERATED = {ROOT / "benchmarks" / "results"}

# A word or a phrase, and why a reader stumbles over it.
PATTERNS = {
    re.compile(r"Raises `\w+` where"): "write: Raises `X` if ...",
    re.compile(r"\bbeside\b", re.IGNORECASE): "write: besides, next to, as well as",
    re.compile(r"(?<![Tt]here )\b[Ii]s no (?!longer\b|more\b|less\b)"): "write: is not a ...",
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
DOCSTRING_START = re.compile(r"(What|Of)\b")

MAX_PRIVATE_PER_1000_LINES = 12
MAX_MODULES = 206
MAX_ROOMS = {"service": 12, "training": 13}
# What a bundle records, and what fits it: the same noun in two rooms.
PAIRS = {"temperature.py", "prediction_sets.py", "review.py"}


def modules(*folders: str) -> list[Path]:
    """Return the Python files below these folders; the links in taillift/ are not followed."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in files if path.resolve() == path)


def text_violations() -> Iterator[str]:
    """Yield each line of code or prose that has one of the patterns."""
    files = [path for folder in TEXTS for path in (ROOT / folder).rglob("*")]
    for path in sorted([*files, *ROOT.glob("*.md"), ROOT / "compose.yaml"]):
        if path.resolve() != path or not path.is_file() or path.suffix not in SUFFIXES:
            continue
        if path == Path(__file__).resolve() or GENERATED & {*path.parents}:
            continue
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            for pattern, advice in PATTERNS.items():
                if match := pattern.search(line):
                    yield f"{path.relative_to(ROOT)}:{number}: {match[0]!r}: {advice}"


def code_violations() -> Iterator[str]:
    """Yield docstrings without a verb, names that stand for two things, and too many helpers."""
    lines, private = 0, 0
    file_names: Counter[str] = Counter()
    class_places: defaultdict[str, list[str]] = defaultdict(list)
    for path in modules(*CODE, "tests", "benchmarks", "scripts"):
        name = str(path.relative_to(ROOT))
        text = path.read_text("utf-8")
        nodes = list(ast.walk(ast.parse(text)))
        for node in nodes:
            if not isinstance(node, DOCUMENTED):
                continue
            start = ast.get_docstring(node)
            if start and DOCSTRING_START.match(start):
                line = 1 if isinstance(node, ast.Module) else node.lineno
                yield f"{name}:{line}: docstring begins with {start.split()[0]!r}: use a verb"
        if not name.startswith(CODE):
            continue
        lines += len(text.splitlines())
        file_names[path.name] += 1
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                class_places[node.name].append(name)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                private += node.name.startswith("_") and not node.name.startswith("__")
    for file_name, count in file_names.items():
        if count > 1 and file_name not in PAIRS | {"__init__.py"}:
            yield f"{file_name} is the name of {count} files: give each its own"
    for class_name, places in class_places.items():
        if len(places) > 1:
            yield f"class {class_name} is defined in {' and '.join(places)}: give each its own name"
    if private * 1000 > MAX_PRIVATE_PER_1000_LINES * lines:
        density = 1000 * private / lines
        yield f"{private} private functions in {lines} lines ({density:.1f} per 1,000): inline some"
    if (count := file_names.total() - file_names["__init__.py"]) > MAX_MODULES:
        yield f"{count} modules: merge some until there are {MAX_MODULES}"


def room_violations() -> Iterator[str]:
    """Yield the folders that have more rooms, modules and folders alike, than a mind holds."""
    for folder, most in MAX_ROOMS.items():
        inside = (ROOT / folder).iterdir()
        rooms = [
            path
            for path in inside
            if (path.suffix == ".py" and path.name != "__init__.py")
            or (path.is_dir() and path.name != "__pycache__")
        ]
        if len(rooms) > most:
            yield f"{folder}/ has {len(rooms)} rooms: merge some until there are {most}"


if __name__ == "__main__":
    violations = [*text_violations(), *code_violations(), *room_violations()]
    print(*violations, sep="\n", end="\n" if violations else "")
    sys.exit(bool(violations))
