"""Trainers that come with trn: each a module that anyone could have written, found by the same entry points.

Here: one module a recipe, its typed parameters, its model and its loss. Not here: anything that a stranger's trainer
could not do. A recipe uses `trn.trainer` and what its own extra installs, and nothing else of the house; it is
imported by name where a spec asks for it, so that no recipe needs the extra of another.

    spec `trainer: lm` ──entry point──> trn.recipes.lm:LanguageModel ──six hooks──> loop
"""

__all__ = ["lm"]
