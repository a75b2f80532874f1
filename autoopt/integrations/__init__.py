"""What training stacks and trackers need on top of `autoopt.select`: one of them in each module.

The names here need none of them.
"""

from autoopt.integrations.decision_callback import DecisionCallback, auto_optimizer_of, when_decided

__all__ = ["DecisionCallback", "auto_optimizer_of", "when_decided"]
