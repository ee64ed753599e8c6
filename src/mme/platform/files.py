"""Decides which keys an object can have: here each is a file, in the folder of its bucket.

rclone takes `t/` for `t`, and deletes `t` where `t/x` is to be deleted; of `t` beside `t/x` it loses one or the other.
"""

from __future__ import annotations

from pathlib import Path

from mme.platform import s3

_NAME_BYTES = 255  # of a file or folder, on Linux and macOS


class Files:
    """The folder of the store: a folder in it is a bucket, a file in that an object."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check_bucket(self, bucket: str) -> None:
        """Raise NoSuchBucket without it."""
        if not (self._folder / bucket).is_dir():
            raise s3.NoSuchBucket(f"The specified bucket {bucket!r} does not exist")

    def check(self, bucket: str, key: str) -> None:
        """Raise InvalidRequest if no object can have the key beside those that there are, or none at all."""
        if obstacle := self._obstacle(bucket, key):
            raise s3.InvalidRequest(
                f"the local S3 keeps objects as files, so {key!r} can't be one: {obstacle}; choose another key, or use "
                "AWS"
            )

    def is_free(self, bucket: str, key: str) -> bool:
        """Whether an object could have the key; `folder/` is no object's."""
        return not key.endswith("/") and not self._obstacle(bucket, key)

    def _obstacle(self, bucket: str, key: str) -> str:
        parts = key.split("/")
        for part in parts:
            if len(part.encode()) > _NAME_BYTES:
                return f"{part!r} is longer than the {_NAME_BYTES} bytes of a file's name"
        for end in range(1, len(parts)):
            parent = "/".join(parts[:end])
            if self._path(bucket, parent).is_file():
                return f"{parent!r} is an object"
        if not key.endswith("/") and self._path(bucket, key).is_dir():
            return f"{key + '/'!r} is a folder"
        return ""

    def _path(self, bucket: str, key: str) -> Path:
        return Path(f"{self._folder}/{bucket}/{key}")
