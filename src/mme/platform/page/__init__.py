"""Decides what a person in front of a browser sees of the platform, live."""
