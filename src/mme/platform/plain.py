"""Decides how the platform's own log is written: a record's first line alone begins at the margin."""

from __future__ import annotations

import logging

from mme.plain import one_record


class PlainFormatter(logging.Formatter):
    """Writes records so that nothing said in one looks like another."""

    def format(self, record: logging.LogRecord) -> str:
        return one_record(super().format(record))
