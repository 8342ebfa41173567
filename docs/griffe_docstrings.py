"""Complete the functions of the stub `diffprune/__init__.pyi` for the API reference."""

from pathlib import Path
from typing import Any

import griffe

from diffprune import _HOMES

STUB = Path(__file__).parents[1] / "src" / "diffprune" / "__init__.pyi"


class StubFunctions(griffe.Extension):
    """Add what griffe leaves out of a stub: docstrings, and functions that have overloads only."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Complete the public functions once all modules of diffprune are loaded; called by griffe."""
        stub = griffe.visit("diffprune", filepath=STUB, code=STUB.read_text())
        for name, overloads in stub.overloads.items():
            if overloads:
                pkg.set_member(name, overloads[0])
        for name, home in _HOMES.items():
            public = pkg.members.get(name)
            if isinstance(public, griffe.Function) and public.docstring is None:
                public.docstring = pkg[f"{home.removeprefix('diffprune.')}.{name}"].docstring
