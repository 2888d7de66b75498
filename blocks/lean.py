"""Owns what a process of ours leaves unimported, or imports once it is used; must not know anything else."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# transformers imports these wherever they are installed. No decoder layer needs them, and they cost a process hundreds
# of megabytes and seconds of its start.
UNNEEDED: Final = ("accelerate", "pandas", "pyarrow", "scipy", "sklearn", "torchaudio", "torchvision")
# Packages of which we use some modules, and whose own first lines import all of them.
IN_PARTS: Final = ("hivemind",)
VALIDATORS: Final = "transformers.utils.type_validators"
# torch's compiler, which transformers' layers import to mark functions for it: a second of each start, 60 MB.
COMPILER: Final = "torch._dynamo"
MASKS: Final = "torch._dynamo._trace_wrapped_higher_order_op"


def leave_out() -> None:
    """Make the packages of UNNEEDED look as if they were not installed, and import of IN_PARTS only what is asked for.
    For programs of ours, never for a library's user, who may need them; call it before transformers is imported, which
    remembers what it has found."""
    for name in () if "transformers" in sys.modules else UNNEEDED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # Python's own way to say that there is none
    for name in IN_PARTS:
        spec = importlib.util.find_spec(name) if name not in sys.modules else None
        if spec is not None:
            sys.modules[name] = importlib.util.module_from_spec(spec)  # its own code is not run
    if COMPILER not in sys.modules:
        sys.modules |= {COMPILER: _Compiler(COMPILER), MASKS: _Masks(MASKS)}
        sys.meta_path.insert(0, _Finder())


def leave_layers_out() -> None:
    """Have transformers read configs and tokenizers without importing its layers' code, and with it torch's compiler:
    it would only do so to check the names of activations, which it leaves be where there are none."""
    if VALIDATORS in sys.modules:
        return
    from transformers import tokenization_utils_base, video_utils  # noqa: F401  what it imports besides, as ever
    from transformers.utils import import_utils

    usual = import_utils.is_torch_available
    import_utils.is_torch_available = lambda: False
    try:
        if importlib.util.find_spec(VALIDATORS) is not None:
            importlib.import_module(VALIDATORS)
    finally:
        import_utils.is_torch_available = usual


class _Compiler(ModuleType):
    """In the compiler's place until somebody asks for more of it than the marks that it alone would read."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        spec = importlib.util.find_spec("torch")
        self.__path__ = [f"{place}/_dynamo" for place in (spec and spec.submodule_search_locations) or ()]
        self.allow_in_graph = self.assume_constant_result = self.disable = _unmarked

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(COMPILER), name)


class _Masks(ModuleType):
    """In the place of a module of the compiler, of which transformers imports this class."""

    @staticmethod
    def TransformGetItemToIndex() -> Any:  # noqa: N802 - torch's name
        return _real(MASKS).TransformGetItemToIndex()


class _Finder(MetaPathFinder):
    """Sees what is imported: modules that are changed once they are there, and parts of a compiler that is not."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in _CHANGES:
            spec = PathFinder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Changing(spec.loader, _CHANGES[name])
            return spec
        if name.startswith(f"{COMPILER}.") and isinstance(sys.modules[COMPILER], _Compiler):
            _real(COMPILER)
            if name in sys.modules:
                return ModuleSpec(name, _There())
        return None


class _Changing(Loader):
    """Loads a module as `loader` does, then changes it."""

    def __init__(self, loader: Loader, change: Callable[[Any], None]) -> None:
        self._loader, self._change = loader, change

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._change(module)


class _There(Loader):
    """Of a module that was imported while it was looked for."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """It has run."""


def _compile_when_called(torch: Any) -> None:
    """Functions that are marked to be compiled import the compiler when they are called."""
    if isinstance(sys.modules[COMPILER], _Compiler):
        torch.compile = functools.partial(_compile_later, torch.compile)


def _know_our_families(import_utils: Any) -> None:
    """Of transformers' models have it list those that we serve: for all it would read 3,000 files, for half a second.
    And have it believe that this torch cannot share a layer out to several processes, for which it would import all
    that is needed."""
    from shoal.blocks.families import FAMILIES

    listed = import_utils.create_import_structure_from_path
    wanted = {"auto"} | {family.module for family in FAMILIES.values()}

    def list_models(path: str | Path) -> Any:
        place = Path(path) if Path(path).is_dir() else Path(path).parent
        if place.name != "models":
            return listed(path)
        return {name: listed(str(place / name)) for name in sorted(wanted) if (place / name).is_dir()}

    import_utils.create_import_structure_from_path = list_models
    import_utils.is_torch_distributed_available = lambda: False


_CHANGES: Final = {"torch": _compile_when_called, "transformers.utils.import_utils": _know_our_families}


def _compile_later(
    compile_now: Callable[..., Any], function: Callable[..., Any] | None = None, **options: Any
) -> Callable[..., Any]:
    """`torch.compile`, which imports the compiler once a compiled function is called."""
    if function is None:
        return functools.partial(_compile_later, compile_now, **options)
    if not isinstance(function, FunctionType):  # a module becomes a module
        ready: Callable[..., Any] = compile_now(function, **options)
        return ready
    compiled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        if not compiled:
            compiled.append(compile_now(function, **options))
        return compiled[0](*given, **named)

    return call


def _real(name: str) -> ModuleType:
    """Import a module whose place one of ours has held."""
    for own in [own for own, module in list(sys.modules.items()) if isinstance(module, (_Compiler, _Masks))]:
        del sys.modules[own]
    return importlib.import_module(name)


def _unmarked(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """A decorator, with or without arguments, that leaves its function as it is."""
    return _unmarked if function is None else function
