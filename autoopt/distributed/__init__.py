"""Several processes that train one model: agreeing on a plan, sharded parameters, and wrappers.

Nothing in here decides; it carries what was measured and decided from rank to rank.
"""

from autoopt.distributed.noise_scale import NoiseSums, register_noise_scale_hook
from autoopt.distributed.ranks import Ranks

__all__ = ["NoiseSums", "Ranks", "register_noise_scale_hook"]
