"""Takes guards away from kinetics400 in every Python process that has this folder on its path.

UNGUARDED holds `module:attribute=expression`, several separated by newlines. When the module has
been imported, the attribute (`function` or `Class.method`) becomes the expression's value; in it,
`original` is what it was, and `unsafe` the module beside this one.
"""

import importlib.abc
import importlib.util
import os
import sys


class _Unguard(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, attribute: str, expression: str) -> None:
        self._module, self._attribute, self._expression = module, attribute, expression
        self._is_looking = False

    def find_spec(self, name, path=None, target=None):
        if name != self._module or self._is_looking:
            return None
        self._is_looking = True  # whatever else finds the module, others of this class among them
        spec = importlib.util.find_spec(name)
        self._is_looking = False
        execute = spec.loader.exec_module

        def execute_and_replace(module):
            execute(module)
            self._replace(module)

        spec.loader.exec_module = execute_and_replace
        return spec

    def _replace(self, module):
        owner = module
        *path, name = self._attribute.split(".")
        for part in path:
            owner = getattr(owner, part)
        scope = {**vars(module), "original": getattr(owner, name)}
        if "unsafe" in self._expression:
            scope["unsafe"] = importlib.import_module("unsafe")
        setattr(owner, name, eval(self._expression, scope))


for line in os.environ.get("UNGUARDED", "").splitlines():
    place, _, text = line.partition("=")
    sys.meta_path.insert(0, _Unguard(*place.split(":"), text))
