"""The denoising discrepancy: how far the two guidance branches are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def relative_mae(conditional: Tensor, unconditional: Tensor) -> Tensor:
    """rel-MAE = mean|e_c - e_u| / mean|e_u| of each image (arXiv 2602.21760, eq. 6), in single precision.

    Args:
        conditional: e_c, (batch, channels, height, width).
        unconditional: e_u, of the same shape.

    Returns:
        (batch,) discrepancies. Where e_u is zero throughout, the result is infinite or, if e_c is too, not a number.
    """
    conditional, unconditional = conditional.float(), unconditional.float()
    return (conditional - unconditional).abs().flatten(1).mean(1) / unconditional.abs().flatten(1).mean(1)
