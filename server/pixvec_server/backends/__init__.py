"""The engines that run a bundle, behind one protocol (`base.Backend`)."""

from pixvec_server.config import disable_telemetry

# Whatever backend is imported next, one of a user's own included, finds telemetry switched off.
disable_telemetry()
