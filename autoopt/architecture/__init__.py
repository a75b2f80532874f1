"""What each trainable parameter of a model is for, found from its modules.

`describe(model)` walks the modules once and returns an `Architecture`: one `LayerInfo` for every
trainable parameter. Roles come from the class of the module that owns a parameter, never from its
name or size, so that a `Linear` called "embedding" stays a matrix.
"""

from autoopt.architecture.description import describe, describe_parameters, frozen_layers
from autoopt.architecture.layer import ROLE_GROUPS, LayerInfo
from autoopt.architecture.summary import Architecture

__all__ = ["ROLE_GROUPS", "Architecture", "LayerInfo", "describe", "describe_parameters", "frozen_layers"]
