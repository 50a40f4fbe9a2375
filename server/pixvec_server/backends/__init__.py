"""The engines that run a bundle, behind one protocol (`base.Backend`)."""
