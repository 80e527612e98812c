"""The name ``Tensor`` for annotations, without torch.

Modules whose classes are options get it from here: jsonargparse runs their ``if TYPE_CHECKING`` blocks.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor as Tensor
else:
    Tensor = Any
