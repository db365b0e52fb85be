"""Finds the views that a process keeps or serves: those of one module or one file."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from projector.definition import View
from projector.errors import DefinitionError
from runtime.settings import variable

_WRITING_ERRORS = (
    ImportError,
    SyntaxError,
    NameError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    RuntimeError,
    OSError,
)
"""What a slip in a module of definitions raises when it is imported."""


def load_views(spec: str) -> tuple[View, ...]:
    """Return the views that a module (`package.module`) or a file (`path/to/views.py`) declares, in their order.

    The working directory is on the import path. Raises DefinitionError when there is no such module or file, when it
    cannot be imported, declares no view, or declares two of one name.
    """
    module = _file(Path(spec)) if spec.endswith(".py") else _module(spec)
    views = tuple({id(value): value for value in vars(module).values() if isinstance(value, View)}.values())
    if not views:
        raise DefinitionError(f"{variable('views')}: {spec} declares no View at its top level")
    names = [view.name for view in views]
    for name in sorted({name for name in names if names.count(name) > 1}):
        raise DefinitionError(f"{variable('views')}: {spec} declares two views called {name!r}; rename one")
    return views


def _module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        # At the end, so that a folder of the user's cannot take the place of an installed package.
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise DefinitionError(
                f"{variable('views')}: there is no module {name!r} on the import path or in {here}; "
                "name a module, or a file that ends in .py"
            ) from error
        raise _cannot_import(name, error) from error
    except _WRITING_ERRORS as error:
        raise _cannot_import(name, error) from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise DefinitionError(f"{variable('views')}: there is no file {str(path)!r} (from {Path.cwd()})")
    spec = importlib.util.spec_from_file_location(f"viewkeeper_views_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise DefinitionError(f"{variable('views')}: {path} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except _WRITING_ERRORS as error:
        raise _cannot_import(str(path), error) from error
    return module


def _cannot_import(spec: str, error: Exception) -> DefinitionError:
    return DefinitionError(f"{variable('views')}: cannot import {spec}: {type(error).__name__}: {error}")
