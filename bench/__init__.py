"""Measurements, each a program: `make bench`. They print ratios taken in one run; nothing here is a test."""
