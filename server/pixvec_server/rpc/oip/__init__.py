"""The Open Inference Protocol beside our own: the same models, queue, limits, metrics and errors."""

from pixvec_server.rpc.oip.service import NAME, InferenceService

__all__ = ["NAME", "InferenceService"]
