"""Start a model package: from a model's file, or from nothing."""

from mme.new.create import Created, create
from mme.new.errors import NewError

__all__ = ["Created", "NewError", "create"]
