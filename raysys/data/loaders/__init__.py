"""Importers: one file per public layout, and `mapped` for any other log."""

from raysys.data.loaders.registry import LOADERS, import_dataset, loader_of, options_of

__all__ = ["LOADERS", "import_dataset", "loader_of", "options_of"]
