"""The one version of the distribution, of the SDK and of the server."""

__version__ = "0.1.0"
