"""Register `diffprune` with diffusers as a library of pipeline components, in either order of import.

diffusers checks the library names in `model_index.json` against a table before it downloads or loads anything.
An import hook adds the entry when diffusers is imported: this module imports neither diffusers nor torch.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_TABLE_MODULE = "diffusers.pipelines.pipeline_loading_utils"
_ENTRY = {"ModelMixin": ["save_pretrained", "from_pretrained"]}


def register_with_diffusers() -> None:
    """Add diffprune to diffusers' table, now or when diffusers is imported."""
    module = sys.modules.get(_TABLE_MODULE)
    if module is not None:
        _register(module)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register(module: ModuleType) -> None:
    module.LOADABLE_CLASSES["diffprune"] = _ENTRY
    module.ALL_IMPORTABLE_CLASSES.update(_ENTRY)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TABLE_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register(module)
