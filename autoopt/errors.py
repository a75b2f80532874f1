"""Exceptions raised by autoopt, all of them subclasses of `AutoOptError`."""


class AutoOptError(Exception):
    """Base of every error that autoopt raises on purpose."""


class ModelError(AutoOptError, ValueError):
    """A model (or a list of parameters) that autoopt cannot optimize as it stands."""


class PlanError(AutoOptError, ValueError):
    """An optimizer plan that is invalid or does not fit the parameters it is used on."""


class CheckpointError(AutoOptError, ValueError):
    """A checkpoint that does not fit the optimizer it is loaded into."""


class ArtifactError(AutoOptError):
    """A selector artifact that is missing, corrupted, truncated or of another schema."""


class ProfileError(AutoOptError, ValueError):
    """A profile that could not be taken: bad `loss_fn`, too few batches, no gradients."""


class MetaDatasetError(AutoOptError):
    """Recorded trials that cannot be read or written."""


class TaskError(AutoOptError, ValueError):
    """A training task that is unknown, invalid, or whose data is not installed."""


class DistributedError(AutoOptError, RuntimeError):
    """Ranks that cannot agree: one is missing, late, or trains something else."""
