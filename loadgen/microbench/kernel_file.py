"""A kernel file: one kernel, its reference, its cases, its bytes and flops; found by path.

What such a file holds, all at module level::

    '''First line: what the kernel does.'''
    OUTPUTS = ("out",)                    names of what it writes, also what it overwrites
    STREAMED = ("weight",)                names of what a server reads afresh at each step: weights, KV cache
    def cases(model, step): ...           -> Cases of a ModelShape at a Step;  or  CASES = [Case(...), ...]
    CHECKS = [{...}, ...]                 parameters, small and odd, at which it must be right too
    def inputs(make, **params): ...       -> dict of tensors (by Make) and numbers
    def reference(**inputs): ...          -> dict of the outputs, in float32 or float64
    def traffic(**params): ...            -> (bytes, flops) that the work cannot do without
    IMPLEMENTATIONS = {"triton": f}       f(**inputs) writes OUTPUTS, or returns them in that order
    BASELINES = {"eager": g, ...}         the same, by others

An implementation that is not installed raises ImportError, one that does not take a case's parameters
NotImplementedError: it is then left out of that case, with its message. What a file may hold besides,
where the defaults do not fit:

    def compare(got, want): ...           -> complaints; none when it is right
    TOLERANCES = {"out": Tolerance(...)}  by output, instead of those by dtype
    def needs(**params): ...              -> (least compute capability, why), or None
    def matrix_dtype(**params): ...       -> the dtype at whose matrix rate its flops are limited; without it
                                          only the memory limits it
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from loadgen.errors import UsageError
from loadgen.microbench.cases import Case, ModelShape, Step

REQUIRED = ("OUTPUTS", "inputs", "reference", "traffic", "IMPLEMENTATIONS")


class Described(NamedTuple):
    """What a kernel file says of itself without being imported."""

    path: Path
    name: str
    title: str
    implementations: list[str]
    baselines: list[str]


def kernels_folder() -> Path:
    """Where the kernels that come with loadgen are: in the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "data" / "kernels"
    return shipped if shipped.is_dir() else package.parent / "kernels"


def find(wanted: Iterable[str]) -> list[Path]:
    """Kernel files by path, by folder, or by the name of one that comes with loadgen; all of those for none.

    Raises:
        UsageError: there is no such file.
    """
    shipped = {path.stem: path for path in sorted(kernels_folder().glob("*.py"))}
    found: list[Path] = []
    names = list(wanted)
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = sorted(path.glob("*.py"))
            if not inside:
                raise UsageError(f"{name}: no kernel file (*.py) in this folder")
            found += inside
        elif path.is_file():
            if path.suffix != ".py":
                raise UsageError(f"{name}: a kernel file ends in .py; see docs/kernels.md")
            found.append(path)
        elif name in shipped:
            found.append(shipped[name])
        else:
            raise UsageError(f"{name}: no such file, and no kernel of that name; there are {', '.join(shipped)}")
    return list(dict.fromkeys(found)) if names else list(shipped.values())


def describe(path: Path) -> Described:
    """A kernel file by its text alone.

    Raises:
        UsageError: it cannot be read, is no Python, or lacks what a kernel file must have.
    """
    try:
        tree = ast.parse(path.read_text(), str(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        raise UsageError(
            f"{path}:{getattr(error, 'lineno', 1)}: is no Python: {getattr(error, 'msg', error)}"
        ) from None
    names: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            names[node.name] = node
        elif isinstance(node, ast.Assign):
            names.update({target.id: node.value for target in node.targets if isinstance(target, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            names[node.target.id] = node.value
    _check_names(path, set(names))
    title = (ast.get_docstring(tree) or path.stem).splitlines()[0].rstrip(".")
    return Described(path, path.stem, title, _keys(names["IMPLEMENTATIONS"]), _keys(names.get("BASELINES")))


def _keys(node: ast.AST | None) -> list[str]:
    keys = node.keys if isinstance(node, ast.Dict) else []
    return [str(key.value) for key in keys if isinstance(key, ast.Constant)]


def _check_names(path: Path, names: set[str]) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if "cases" not in names and "CASES" not in names:
        missing.append("cases (or CASES)")
    if missing:
        raise UsageError(
            f"{path}: is no kernel file: it has no {', '.join(missing)}; docs/kernels.md says what they are"
        )


class KernelFile:
    """An imported kernel file.

    Raises:
        UsageError: it fails on import, or lacks what a kernel file must have.
    """

    def __init__(self, path: Path) -> None:
        described = describe(path)
        self.path, self.name, self.title = path, described.name, described.title
        self.module = _load(path)
        self.outputs: tuple[str, ...] = tuple(self.module.OUTPUTS)
        self.streamed: tuple[str, ...] = tuple(getattr(self.module, "STREAMED", ()))
        self.checks: list[dict[str, Any]] = list(getattr(self.module, "CHECKS", ()))
        self.implementations: dict[str, Callable[..., Any]] = dict(self.module.IMPLEMENTATIONS)
        self.baselines: dict[str, Callable[..., Any]] = dict(getattr(self.module, "BASELINES", {}))
        both = self.implementations.keys() & self.baselines.keys()
        if both:
            raise UsageError(f"{path}: {', '.join(sorted(both))} stands in IMPLEMENTATIONS and in BASELINES")
        self.tolerances: dict[str, Any] = dict(getattr(self.module, "TOLERANCES", {}))

    def cases(self, model: ModelShape | None, step: Step | None) -> list[Case]:
        """The cases at a step of a model, or the file's own ``CASES``.

        Raises:
            UsageError: the file needs a model and none is given.
        """
        fixed = getattr(self.module, "CASES", None)
        if fixed is not None:
            return list(fixed)
        if model is None or step is None:
            raise UsageError(f"{self.path}: its cases come from a model: give --model")
        return list(self.module.cases(model, step))

    def inputs(self, make: Any, params: dict[str, Any]) -> dict[str, Any]:
        found = self.module.inputs(make, **params)
        lost = [name for name in (*self.outputs, *self.streamed) if name not in found]
        if lost:
            raise UsageError(f"{self.path}: inputs() gives no {', '.join(lost)}, which OUTPUTS or STREAMED names")
        return dict(found)

    def reference(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(self.module.reference(**inputs))

    def traffic(self, params: dict[str, Any]) -> tuple[float, float]:
        """Bytes and flops."""
        moved, flops = self.module.traffic(**params)
        return float(moved), float(flops)

    def needs(self, params: dict[str, Any]) -> tuple[tuple[int, int], str] | None:
        """The least compute capability for these parameters and why; None for any."""
        function = getattr(self.module, "needs", None)
        return None if function is None else function(**params)

    def matrix_dtype(self, params: dict[str, Any]) -> str | None:
        """Operands' dtype on the matrix units; None where the flops do not matter."""
        function = getattr(self.module, "matrix_dtype", None)
        return None if function is None else str(function(**params))

    @property
    def compare(self) -> Callable[..., list[str]] | None:
        return getattr(self.module, "compare", None)


def _load(path: Path) -> ModuleType:
    name = f"loadgen_kernel_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # triton and inspect look a function's module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        line = next((f.lineno for f in reversed(inspect.trace()) if f.filename == str(path)), 1)
        raise UsageError(f"{path}:{line}: {type(error).__name__}: {error}") from error
    return module
