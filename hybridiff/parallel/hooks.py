"""Hooks with a forward of their own that stay in place where Diffusers removes a hook below them."""

from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import HookFunctionReference
from torch import nn


class ForwardHook(ModelHook):
    """A hook that replaces a module's forward by its ``new_forward``.

    Where a hook below it is removed, as by group offloading once it has learned the order of the layers, Diffusers puts the
    remaining forward in the place of ``new_forward``; this hook then puts it below itself.
    """

    @property
    def fn_ref(self) -> Any:
        """What Diffusers calls for this hook."""
        return self._fn_ref

    @fn_ref.setter
    def fn_ref(self, reference: HookFunctionReference | None) -> None:
        self._fn_ref = reference
        self._own_forward = None if reference is None else reference.forward

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Called before ``new_forward`` or what is in its place."""
        self.restore()
        return args, kwargs

    def restore(self) -> None:
        """Puts ``new_forward`` back in its place."""
        reference = self._fn_ref
        if reference is not None and reference.forward is not self._own_forward:
            reference.original_forward, reference.forward = reference.forward, self._own_forward


def remove_hook(module: nn.Module, name: str) -> None:
    """Removes a hook of this name, if there is one, and leaves those below it that are there still."""
    registry = HookRegistry.check_if_exists_or_initialize(module)
    hook = registry.get_hook(name)
    if isinstance(hook, ForwardHook):
        hook.restore()  # Diffusers goes on with what was below it when it was last in its place
    registry.remove_hook(name, recurse=False)
