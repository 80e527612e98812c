"""The axis of the batch's rows in each input of a denoiser: described by the input's name, or learned by experiments.

Names mean the same in all of Diffusers' networks, so ``AXES`` describes these, and a few names in any network. A network of a
class of one's own is described by ``register_inputs``. What is not described is learned before a batch is divided for the first
time: one entry on an axis is changed at a time, and where this changes the prediction of that row alone, bit for bit, the rows
lie on that axis. Equal sizes say nothing: an entry for each token, channel or head changes the predictions of all rows.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hybridiff.errors import UsageError
from hybridiff.models.inputs import count_rows, map_tensors, raw_latents, tensors_in

Axis = int | Literal["items"] | None
Path = tuple[str | int, ...]  # name or position of the argument, then keys and positions in dicts, lists and tuples

_ROWS_FIRST = """
hidden_states sample x timestep timesteps t timestep_r timestep_cond guidance class_labels additional_t_cond
encoder_hidden_states encoder_hidden_states_mask encoder_attention_mask encoder_hidden_states_image attention_mask encoder_mask
encoder_hidden_states_2 encoder_attention_mask_2 encoder_hidden_states_t5 text_embedding_mask text_embedding_mask_t5
pooled_projections pooled_embeds text_embeds time_ids image_embeds resolution aspect_ratio original_size target_size crop_coords
image_meta_size style text_encoder_layers text_bth text_lens prior_token_id prior_token_drop hidden_states_masks img_sizes hint
controlnet_block_samples controlnet_single_block_samples block_controlnet_hidden_states down_block_additional_residuals
mid_block_additional_residual down_intrablock_additional_residuals video_coords control_hidden_states
ip_adapter_image_embeds ip_hidden_states
"""
_SHARED = """
image_rotary_emb video_rotary_emb freqs_cis text_rope_pos visual_rope_pos rope_interpolation_scale scale_factor
img_shapes txt_seq_lens ip_adapter_masks control_hidden_states_scale num_frames height width
"""
AXES: dict[str, Axis] = {  # by argument, or key of an argument that is a dict; None: shared by all rows
    **dict.fromkeys(_ROWS_FIRST.split(), 0),
    **dict.fromkeys(_SHARED.split(), None),
    # Position ids have rows if they are (rows, tokens, axes), and none if they are (tokens, axes), so theirs counts from the end
    **dict.fromkeys(("img_ids", "txt_ids", "image_cond_ids", "position_ids"), -3),
    "encoder_hidden_states_llama3": 1,  # (layers, rows, tokens, channels)
    "cap_feats": "items",  # a list with one tensor per row
}
_COMMON = "timestep timesteps encoder_hidden_states pooled_projections text_embeds time_ids"  # mean the same in any network
_REGISTERED: dict[type, dict[str, Axis]] = {}


def register_inputs(denoiser: type[nn.Module], axes: Mapping[str, Axis]) -> None:
    """Describes the inputs of a denoiser class, and of its subclasses, so that batches can be divided by rows.

    Args:
        denoiser: class of the network.
        axes: axis of the batch's rows by name of an argument, or by key where the argument is a dict; -1 is the last axis;
            ``items``: a list with an item for each row; None: shared by all rows. Inputs that are not named here have the axes
            of Diffusers' inputs of that name, and else are learned.
    """
    _REGISTERED[denoiser] = dict(axes)


class RowAxes:
    """The axes of the inputs of one network.

    Args:
        names: names of the positional arguments.
        described: axes that are known, by name.
        name: class name of the network, for errors.
    """

    def __init__(self, names: tuple[str, ...] = (), described: Mapping[str, Axis] = AXES, name: str = "denoiser") -> None:
        self._names = names
        self._described = described
        self._name = name
        self._learned: dict[tuple[Path, int], Axis] = {}  # by path and dimensions

    @classmethod
    def of(cls, denoiser: nn.Module) -> "RowAxes":
        """The axes of a network by what is known of its class."""
        network: nn.Module = getattr(denoiser, "_orig_mod", denoiser)  # of torch.compile
        kind = type(network)
        registered = next((_REGISTERED[base] for base in kind.__mro__ if base in _REGISTERED), None)
        stock = kind.forward.__module__.startswith("diffusers.")
        described = AXES if stock else {name: AXES[name] for name in _COMMON.split()}
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [name for name, one in inspect.signature(kind.forward).parameters.items() if one.kind in positional]
        return cls(tuple(names[1:]), described if registered is None else AXES | registered, kind.__name__)

    def map_rows(
        self, function: Callable[[Any], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a denoiser call with each input that has rows replaced by the function's result.

        Args:
            function: called with each tensor (rows, ...), its rows moved to the front, or list of rows.
            args: positional arguments.
            kwargs: keyword arguments.

        Raises:
            UsageError: the axis of an input is not known, or is described or was learned wrongly.
        """
        rows, latents = count_rows(args, kwargs), raw_latents(args, kwargs)
        if rows == 1:
            return args, kwargs

        def replaced(path: Path, value: Any) -> Any:
            axis = self._axis(path, value, rows, latents)
            if axis == "items" and isinstance(value, (list, tuple)):
                return function(list(value)) if len(value) == rows else value
            if isinstance(value, Tensor) and isinstance(axis, int) and self._has_rows(path, value, axis, rows):
                return _at_axis(function, value, axis)
            return _INSIDE

        return _mapped(replaced, args, kwargs, self._names)

    def unknown(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Path, Any]:
        """The inputs that may have rows or not, by path: neither described nor learned, and with as many entries as rows."""
        rows, latents, found = count_rows(args, kwargs), raw_latents(args, kwargs), dict[Path, Any]()

        def look(path: Path, value: Any) -> Any:
            axis = self._known(path, value, latents)
            if axis is _UNKNOWN and _candidates(value, rows):
                found[path] = value
            return value if axis == "items" else _INSIDE

        if rows > 1:
            _mapped(look, args, kwargs, self._names)
        return found

    def learn(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Learns the axes of the unknown inputs of a call by experiments, which leave the random numbers of the run as they are.

        Args:
            forward: forward of the network; its calls must not depend on one another.
            args: positional arguments.
            kwargs: keyword arguments.

        Raises:
            UsageError: the network mixes the rows of a batch, so that it cannot be divided at all.
        """
        unknown = self.unknown(args, kwargs)
        if not unknown:
            return
        devices = {tensor.device for tensor in tensors_in((args, kwargs)) if tensor.device.type == "cuda"}
        with torch.no_grad(), torch.random.fork_rng(devices):
            self._learn(unknown, _Experiment(forward, args, kwargs, self._names))

    def _learn(self, unknown: dict[Path, Any], experiment: "_Experiment") -> None:
        latents, last = experiment.latents, experiment.rows - 1
        if experiment.changed(lambda _, value: _other(value, 0, last) if value is latents else _INSIDE) not in (set(), {last}):
            raise UsageError(
                f"the {self._name} computes rows of a batch from one another, and a batch is divided by rows; allowed: a group "
                "of 1 without half steps, a network that computes each row by itself, or, where rows differ by rounding alone, "
                f"all inputs described by hybridiff.models.row_axes.register_inputs({self._name}, ...)"
            )
        within = list[Path]()  # lists of rows, whose items have none
        for path, value in unknown.items():
            if any(path[: len(outer)] == outer for outer in within):
                continue
            axis = experiment.axis(path, value)
            if axis is _UNKNOWN:
                axis = self._by_name(path, AXES)
            if axis is not _UNKNOWN:
                self._learned[path, _dimensions(value)] = axis
            if axis == "items":
                within.append(path)

    def _axis(self, path: Path, value: Any, rows: int, latents: Any) -> Any:
        """The axis of an input; None where it can have no rows.

        Raises:
            UsageError: it is not known.
        """
        axis = self._known(path, value, latents)
        if axis is not _UNKNOWN:
            return axis
        if rows > 1 and _candidates(value, rows):
            raise UsageError(
                f"it is not known whether {_text(path)} of the {self._name} has the batch's {rows} rows or is shared by them; "
                f"allowed: hybridiff.models.row_axes.register_inputs({self._name}, {{{_name(path)!r}: AXIS or None}}), a group "
                "of 1 with schedule full, or batches of one image"
            )
        return None

    def _known(self, path: Path, value: Any, latents: Any) -> Any:
        """The axis of an input by description or experience; rows of latents come first, or are the items of a list."""
        if value is latents:
            return "items" if isinstance(value, list) else 0
        axis = self._by_name(path, self._described)
        return self._learned.get((path, _dimensions(value)), _UNKNOWN) if axis is _UNKNOWN else axis

    def _by_name(self, path: Path, axes: Mapping[str, Axis]) -> Any:
        return next((axes[name] for name in reversed(path) if isinstance(name, str) and name in axes), _UNKNOWN)

    def _has_rows(self, path: Path, tensor: Tensor, axis: int, rows: int) -> bool:
        """Whether a tensor has rows on its axis; one of fewer dimensions, or with a single entry there, is shared by them."""
        if not -tensor.ndim <= axis < tensor.ndim or tensor.shape[axis] == 1:
            return False
        if tensor.shape[axis] != rows:
            raise UsageError(
                f"{_text(path)} of the {self._name} is {tuple(tensor.shape)}, and has rows on axis {axis}; allowed: {rows} of "
                "them, as the latents have, or 1"
            )
        return True


class _Experiment:
    """Calls of a network with one input changed, compared with a call with none changed.

    Args:
        forward: forward of the network.
        args: positional arguments.
        kwargs: keyword arguments.
        names: names of the positional arguments.
    """

    def __init__(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, ...]
    ) -> None:
        self.latents, self.rows = raw_latents(args, kwargs), count_rows(args, kwargs)
        self._forward = forward
        self._given = args, kwargs, names
        self._plain = self._run(args, kwargs)
        again = self._predict(args, kwargs)
        self._repeats = again is not None and not _different_rows(self._plain, again)

    def axis(self, path: Path, value: Any) -> Any:
        """The axis of an input's rows; None where it is shared by all rows; ``_UNKNOWN`` where nothing distinguishes them."""
        found, shared, unclear = list[Axis](), False, False
        for axis in _candidates(value, self.rows):
            rows: list[tuple[int, set[int]]] = []  # by entry, those that it changes
            for entry in (0, self.rows - 1):

                def change(at: Path, given: Any, axis: Any = axis, entry: int = entry) -> Any:
                    return _other(given, axis, entry) if at == path else _INSIDE

                rows.append((entry, self.changed(change)))
            own = any(changed == {entry} for entry, changed in rows)
            others = any(changed not in (set(), {entry}) for entry, changed in rows)
            found += [axis] if own and not others else []
            shared |= others
            # As where the length of the longest row decides how far all are padded
            unclear |= own and others and all(entry in changed for entry, changed in rows if changed)
        if len(found) == 1:
            return found[0]
        return None if shared and not found and not unclear else _UNKNOWN

    def changed(self, change: Callable[[Path, Any], Any]) -> set[int]:
        """The rows whose predictions another input changes; none where the network refuses it, or never predicts the same."""
        args, kwargs, names = self._given
        changed = self._predict(*_mapped(change, args, kwargs, names)) if self._repeats else None
        return set() if changed is None else _different_rows(self._plain, changed)

    def _predict(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor] | None:
        """The prediction of each row; None where the network refuses the inputs."""
        try:
            prediction = self._run(args, kwargs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
            return None
        return prediction if len(prediction) == len(self._plain) == self.rows else None

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The prediction of each row, in memory that later calls do not use, from containers that the network may change."""
        args, kwargs = _mapped(lambda path, value: _INSIDE, args, kwargs, self._given[2])
        return [row.clone() for row in self._forward(*args, **kwargs)[0]]


_INSIDE = object()  # of a value that is not replaced as a whole
_UNKNOWN = object()


def _mapped(
    function: Callable[[Path, Any], Any], args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, ...]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with each value at any depth replaced by the function's result, unless that is ``_INSIDE``."""

    def mapped(path: Path, value: Any) -> Any:
        replaced = function(path, value)
        if replaced is not _INSIDE:
            return replaced
        if isinstance(value, dict):
            return {key: mapped((*path, key), inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            items = [mapped((*path, position), inner) for position, inner in enumerate(value)]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return value

    labels = [names[position] if position < len(names) else position for position in range(len(args))]
    return (
        tuple(mapped((label,), value) for label, value in zip(labels, args, strict=True)),
        {name: mapped((name,), value) for name, value in kwargs.items()},
    )


def _candidates(value: Any, rows: int) -> list[Any]:
    """The axes on which a value has as many entries as there are rows."""
    if isinstance(value, Tensor):
        return [axis for axis, size in enumerate(value.shape) if size == rows]
    return ["items"] if isinstance(value, (list, tuple)) and len(value) == rows else []


def _dimensions(value: Any) -> int:
    return value.ndim if isinstance(value, Tensor) else -1


def _different_rows(one: list[Tensor], other: list[Tensor]) -> set[int]:
    same = [a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all()) for a, b in zip(one, other, strict=True)]
    return {row for row, equal in enumerate(same) if not equal}


def _other(value: Any, axis: Any, entry: int) -> Any:
    """A value with one entry on an axis changed; the same where nothing else is known to be valid there."""
    if isinstance(value, Tensor):
        changed = value.movedim(axis, 0).clone()
        changed[entry] = _changed(changed[entry])
        return changed.movedim(0, axis)
    one, items = value[entry], list(value)
    if tensors_in(one):
        items[entry] = map_tensors(_changed, one)
    else:
        items[entry] = next((item for item in value if item != one), one)
    return items if isinstance(value, list) else tuple(items)


def _changed(tensor: Tensor) -> Tensor:
    """Another tensor of the same kind: unlike it by more than a constant, and for integers with values nearby."""
    uneven = (torch.arange(tensor.numel(), device=tensor.device) % 3).view(tensor.shape)
    if tensor.dtype == torch.bool:
        return tensor.logical_xor(uneven == 0)
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return torch.where(uneven == 0, torch.where(tensor > 0, tensor - 1, tensor + 1), tensor)
    return tensor * 0.5 + (1 + uneven).to(tensor.dtype)


def _at_axis(function: Callable[[Any], Any], tensor: Tensor, axis: int) -> Any:
    if axis == 0:
        return function(tensor)
    result = function(tensor.movedim(axis, 0))
    return result.movedim(0, axis) if isinstance(result, Tensor) and result.ndim == tensor.ndim else result


def _name(path: Path) -> str:
    """The name by which an input is described."""
    return next((name for name in reversed(path) if isinstance(name, str)), "NAME")


def _text(path: Path) -> str:
    """An input as it is written in Python."""
    return str(path[0] if isinstance(path[0], str) else f"argument {path[0]}") + "".join(f"[{key!r}]" for key in path[1:])
