"""Decides how models of DJL's Java engines are served in a worker: each engine's module has a `handle` of its own."""
