"""Optimizers as data: the catalog, plans, recipes, and the one optimizer that runs them."""
