"""Outputs in the layouts that other programs read: a module for each, which `EXPORTS` lists."""

from batchgen.exports.export import EXPORTS, Exported, export

__all__ = ["EXPORTS", "Exported", "export"]
