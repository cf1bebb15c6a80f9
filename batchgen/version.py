"""The version, apart from the package's front so that modules below can say it."""

__all__ = ["__version__"]

__version__ = "0.1.0"
