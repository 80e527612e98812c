"""Atoms: the submodules that one rank runs and the others stand in for, and the hook that does so."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook

SEGMENT_HOOK_NAME = "hybridiff.segment"


class Stage:
    """The atoms of one denoiser, and what they do in the call under way. Between calls it holds nothing but its hooks."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        self._denoiser = denoiser
        self._hooked: dict[str, torch.nn.Module] = {}
        self.given: Mapping[str, Any] = {}
        self.note: Callable[[str, Any], None] | None = None

    def install(self, paths: Iterable[str]) -> None:
        """Hooks atoms; again, where a module was replaced since, as by an adapter."""
        for path in paths:
            module = self._denoiser.get_submodule(path)
            if self._hooked.get(path) is not module:
                self._unhook(path)
                HookRegistry.check_if_exists_or_initialize(module).register_hook(SegmentHook(path, self), SEGMENT_HOOK_NAME)
                self._hooked[path] = module

    def remove(self) -> None:
        """Takes all hooks away."""
        for path in list(self._hooked):
            self._unhook(path)

    def _unhook(self, path: str) -> None:
        module = self._hooked.pop(path, None)
        if module is not None:
            HookRegistry.check_if_exists_or_initialize(module).remove_hook(SEGMENT_HOOK_NAME, recurse=False)

    @contextmanager
    def scene(self, given: Mapping[str, Any], note: Callable[[str, Any], None] | None) -> Iterator[None]:
        """For one call of the denoiser.

        Args:
            given: Outputs by path of the atoms that are not run.
            note: Told path and output of each atom that is run.
        """
        self.given, self.note = given, note
        try:
            yield
        finally:
            self.given, self.note = {}, None


class SegmentHook(ModelHook):
    """Runs an atom, or returns what was given for it."""

    def __init__(self, path: str, stage: Stage) -> None:
        super().__init__()
        self.path = path
        self.stage = stage

    @torch.compiler.disable(recursive=False)  # else each change of what is given would compile the atom anew
    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the atom's forward."""
        if self.path in self.stage.given:
            return self.stage.given[self.path]
        output = self.fn_ref.original_forward(*args, **kwargs)
        if self.stage.note is not None:
            self.stage.note(self.path, output)
        return output
