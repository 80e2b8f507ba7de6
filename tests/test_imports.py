"""One direction: in C and in Python, includes and imports only point downwards."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PYLLM = ROOT / "pyllm"

C_LAYERS = ["base", "quant", "kernels", "ops", "model"]  # a layer may include itself and those before it
C_BESIDE = {  # what stands beside the layers, and on what
    "sampler.c": {"base", "kernels"},
    "generate.c": {"base", "model", "sampler.c"},
    "text": {"base", "text"},
}
C_BOUNDARY = {"pyllm.h", "pyllm_api.h"}  # declarations only, for everyone

# What each Python module may import, by first name under pyllm; a folder's modules may import each other.
FOUNDATION = {"errors", "config", "progress", "machine", "logs"}
PY_MAY_IMPORT = {
    "errors": set(),
    "config": set(),
    "progress": set(),
    "machine": set(),
    "logs": set(),
    "formats": {"errors", "config", "logs"},
    "architectures": {"errors", "config", "formats"},
    "_core": {"errors", "config", "machine", "_native"},
    "tokenizers": {"errors", "config", "machine", "logs", "formats", "_core"},
    "sampling": {"errors", "_core"},
    "ahead": {"_core"},
    "generation": {"errors", "machine", "awaiting", "latch"},
    "batching": {"errors", "latch"},
    "latch": set(),
    "speculation": {"ahead", "errors"},
    "awaiting": {"errors"},
    "scheduler": {"errors", "_core", "ahead"},
    "embedding": {"errors", "_core", "formats", "scheduler"},
    "adapters": {"errors", "config", "_core", "formats", "architectures", "loading"},
    "prefixes": {"_core", "latch"},
    "hooks": set(),
    "grammar": {"errors"},
    "tool_formats": {"tool_schemas"},
    "tool_schemas": set(),
    "conversation": {"errors", "tool_formats", "tool_schemas", "tokenizers"},
    "tools": {"tool_formats", "tool_schemas", "tokenizers"},
    "recipes": {"formats"},
    "package_index": {"errors", "progress"},
    "catalogue": {"errors", "progress", "package_index"},
}
# Under TYPE_CHECKING: a name in an annotation, no import when running.
PY_TYPES_ONLY = {
    "session": {"model"},
    "session_file": {"model", "session"},
    "steps": {"model", "session"},
    "ahead": {"sampling"},
    "awaiting": {"generation"},
    "batching": {"generation"},
    "speculation": {"session"},
    "hooks": {"generation"},
    "grammar": {"generation", "sampling", "tokenizers"},
    "generation": {"ahead", "tool_formats"},
    "tool_formats": {"tokenizers"},
    "tools": {"model", "session"},
}
PY_FACADE = FOUNDATION | set(PY_MAY_IMPORT) - {"_native"}
PY_MAY_IMPORT |= {
    "steps": PY_FACADE,
    "session_file": {"errors", "adapters", "formats"},
    "session": PY_FACADE | {"steps", "session_file"},
    "loading": FOUNDATION | {"_core", "formats", "architectures"},
    "model": PY_FACADE | {"steps", "session_file", "session", "loading"},
    "materials": FOUNDATION | {"formats", "architectures", "tokenizers", "loading", "recipes"},
    "quantizing": FOUNDATION
    | {"_core", "formats", "architectures", "tokenizers", "recipes", "loading", "model", "materials"},
    "__init__": PY_FACADE | {"session", "model", "quantizing"},
    "measuring": FOUNDATION | {"__init__", "_core", "model"},
    "cli": PY_FACADE | {"__init__", "session", "model", "quantizing", "measuring"},
    "__main__": {"cli"},
}


# ---- C -------------------------------------------------------------------------------------------------------------


def includes(path: Path, bracket: str) -> list[str]:
    """What a C file includes: `bracket` is `"` for our own files, `<` for the system's."""
    return re.findall(rf'^[ \t]*#[ \t]*include[ \t]+{bracket}([^">]+)', path.read_text(), re.MULTILINE)


def c_files() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in {".c", ".h", ".inc"})


def layer(path: Path) -> str:
    return path.relative_to(CSRC).parts[0]


def allowed_c_layers(of: str) -> set[str]:
    if of in C_BESIDE:
        return C_BESIDE[of]
    if of in C_LAYERS:
        return set(C_LAYERS[: C_LAYERS.index(of) + 1])
    raise AssertionError(f"csrc/{of} belongs to no layer: give it one here")


@pytest.mark.parametrize("path", c_files(), ids=lambda path: str(path.relative_to(CSRC)))
def test_c_calls_through_the_boundary_point_downwards(path: Path) -> None:
    """Everyone may include its declarations, so that what is called is looked at as well."""
    source = path.read_text()
    allowed = allowed_c_layers(layer(path)) if path.name not in C_BOUNDARY else set()
    for name, defining in definitions().items():
        if path != defining and path.name not in C_BOUNDARY and re.search(rf"\b{name}\(", source):
            assert layer(defining) in allowed, f"{path.relative_to(CSRC)} may not call {name}"


@functools.cache
def definitions() -> dict[str, Path]:
    """The functions of the boundary, and the files that they stand in."""
    names = re.findall(r"\b(pl_\w+)\((?!\*)", (CSRC / "pyllm_api.h").read_text())
    found = {
        name: path
        for path in c_files()
        if path.suffix == ".c"
        for name in re.findall(r"^[a-z][^;{}=]*?\b(pl_\w+)\([^;{}]*\) \{", path.read_text(), re.MULTILINE)
        if name in names
    }
    assert len(found) == len(set(names)), set(names) - set(found)
    return found


@pytest.mark.parametrize("path", c_files(), ids=lambda path: str(path.relative_to(CSRC)))
def test_c_includes_point_downwards(path: Path) -> None:
    if path.name in C_BOUNDARY:
        assert set(includes(path, '"')) <= {"pyllm_api.h"}
        return
    allowed = allowed_c_layers(layer(path))
    for name in includes(path, '"'):
        found = next((base / name for base in (path.parent, CSRC) if (base / name).is_file()), None)
        assert found is not None, f"{path} includes {name}, which is neither beside it nor under csrc/"
        if found.name not in C_BOUNDARY:
            assert layer(found.resolve()) in allowed, f"{path.relative_to(CSRC)} may not include {name}"


def test_one_file_includes_omp() -> None:
    assert [p.relative_to(CSRC).as_posix() for p in c_files() if "omp.h" in includes(p, "<")] == ["base/threads.c"]


# ---- Python --------------------------------------------------------------------------------------------------------


def python_files() -> list[Path]:
    return sorted(PYLLM.rglob("*.py"))


def module(path: Path) -> str:
    """The first name under pyllm: the unit that the rules speak of."""
    return path.relative_to(PYLLM).parts[0].removesuffix(".py")


def imported(path: Path, types: bool = True) -> Iterator[str]:
    """Modules of ours that a file imports, inside functions too; `types`: also those under `if TYPE_CHECKING`."""
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop(0)
        if types or not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (first_name(alias.name) for alias in node.names if is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            if node.module == "pyllm":
                yield from (alias.name if is_module(alias.name) else "__init__" for alias in node.names)
            elif node.module and is_ours(node.module):
                yield first_name(node.module)


def is_ours(name: str) -> bool:
    return name.split(".")[0] == "pyllm"


def first_name(name: str) -> str:
    """`formats` of `pyllm.formats.gguf`; `pyllm` alone is what `__init__` gives."""
    return [*name.split("."), "__init__"][1]


def is_module(name: str) -> bool:
    """Whether `from pyllm import name` imports a module, rather than a public name."""
    return name == "_native" or (PYLLM / name).is_dir() or (PYLLM / f"{name}.py").is_file()


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(PYLLM)))
def test_python_imports_point_downwards(path: Path) -> None:
    mine = module(path)
    assert mine in PY_MAY_IMPORT, f"pyllm/{mine} has no rule: say here what it may import"
    allowed = PY_MAY_IMPORT[mine] | {mine}
    for excess in (
        set(imported(path, types=False)) - allowed,
        set(imported(path)) - allowed - PY_TYPES_ONLY.get(mine, set()),
    ):
        assert not excess, f"{path.relative_to(PYLLM)} may not import {', '.join(sorted(excess))}"


def test_one_module_imports_the_extension() -> None:
    assert [path.name for path in python_files() if "_native" in set(imported(path))] == ["_core.py"]


def test_the_walk_sees_imports(tmp_path: Path) -> None:
    """The rules above are worth something only if hidden imports are found too."""
    source = tmp_path / "x.py"
    source.write_text(
        "import pyllm.model\ndef f():\n    from pyllm import _native\n    from pyllm.formats.gguf import x\n"
        "    import pyllm\n    from pyllm import Model\nif TYPE_CHECKING:\n    import pyllm.session\n"
    )
    assert sorted(imported(source, types=False)) == ["__init__", "__init__", "_native", "formats", "model"]
    assert set(imported(source)) - set(imported(source, types=False)) == {"session"}
