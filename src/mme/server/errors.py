"""Decides how each failure of the server looks to a caller: DJL Serving's status, type and message.

    ServerError
    ├── BadRequest 400          ├── ModelNotFound 404       ├── LoadFailed 500
    ├── ResourceNotFound 404    ├── MethodNotAllowed 405    ├── OutOfMemory 507
    ├── Conflict 409            ├── BatchMismatch 400       ├── WorkerFailed 503
    ├── NotReady 503            ├── NoWorkers 503           ├── QueueFull 503
    ├── InvalidValue 409        ├── InvalidParameter 400    └── JavaFailure 500
    └── Refused 403

The texts and the type names (those of Java's exceptions) are DJL Serving 0.36's, so that what is written
against it works here; what DJL hides from the caller, such as the traceback of a handler, goes to the log.
"""

from __future__ import annotations

import json


class ServerError(Exception):
    """A failure with a place in the contract: `code`, `type`, an optional reason phrase; str() is the message.

    An empty message leaves the key out of the body, as DJL does where a Java exception has no text.
    """

    code = 500
    type = "EngineException"
    reason: str | None = None

    def body(self) -> bytes:
        content: dict[str, object] = {"code": self.code, "type": self.type}
        if str(self):
            content["message"] = str(self)
        return java_json(content)


class BadRequest(ServerError):
    code = 400
    type = "BadRequestException"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.reason = message


class Refused(ServerError):
    """Somebody who isn't listened to; DJL Serving has no such answer."""

    code = 403
    type = "ForbiddenException"


class InvalidParameter(BadRequest):
    """A query parameter that isn't a number; DJL puts its own words into the reason phrase only."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.reason = f"parameter is invalid number.{message}"


class ResourceNotFound(ServerError):
    code = 404
    type = "ResourceNotFoundException"

    def __init__(self) -> None:
        super().__init__("Requested resource is not found, please refer to API document.")


class MethodNotAllowed(ServerError):
    code = 405
    type = "MethodNotAllowedException"

    def __init__(self) -> None:
        super().__init__("Requested method is not allowed, please refer to API document.")


class ModelNotFound(ServerError):
    """An unknown model, a url without a model, a folder that no engine knows."""

    code = 404
    type = "ModelNotFoundException"


class Conflict(ServerError):
    code = 409
    type = "BadRequestException"

    def __init__(self, name: str) -> None:
        super().__init__(f"Workflow {name} is already registered.")
        self.reason = str(self)


class InvalidValue(ServerError):
    """A setting that can't be used: DJL answers 409 for each of Java's argument errors."""

    code = 409
    type = "IllegalArgumentException"


class NotANumber(InvalidValue):
    type = "NumberFormatException"

    def __init__(self, value: str) -> None:
        super().__init__(f'For input string: "{value}"')


class JavaFailure(ServerError):
    """A request on which DJL's own code stumbles; `type` is the name of Java's exception."""

    def __init__(self, java_type: str, message: str = "") -> None:
        super().__init__(message)
        self.type = java_type


class LoadFailed(ServerError):
    """The worker could not be started or its init call failed. `cause` is what DJL's words hide, for the log."""

    def __init__(self, message: str = "", cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


class InitOutOfMemory(LoadFailed):
    """The init call raised MemoryError: a platform unloads other models and tries again."""

    code = 507

    def __init__(self) -> None:
        super().__init__("OOM")


class OutOfMemory(ServerError):
    """The model doesn't fit beside the loaded ones: a platform unloads other models and tries again."""

    code = 507
    type = "WlmOutOfMemoryException"

    def __init__(self) -> None:
        super().__init__("No enough memory to load the model.")


class WorkerFailed(ServerError):
    """The worker that had the call is gone, or the model has none and can't get one."""

    code = 503
    type = "WlmException"


class NotReady(ServerError):
    """The model is still loading, or has failed, and so can't be scaled."""

    code = 503
    type = "ServiceUnavailableException"

    def __init__(self, name: str) -> None:
        super().__init__(f"Model or workflow is not ready: {name}")


class NoWorkers(ServerError):
    """The model may have no worker at all."""

    code = 503
    type = "WlmShutdownException"

    def __init__(self, name: str) -> None:
        super().__init__(f"All model workers has been shutdown: {name}")


class QueueFull(ServerError):
    code = 503
    type = "WlmCapacityException"

    def __init__(self, name: str) -> None:
        super().__init__(f"Worker queue capacity exceeded for model: {name}")


class BatchMismatch(ServerError):
    """A handler answered a batch with another number of outputs than it had inputs."""

    code = 400
    type = "TranslateException"


def told(error: BaseException) -> str:
    """An error for the log: DJL's words, and the cause behind them where it is known."""
    cause = error.cause if isinstance(error, LoadFailed) else ""
    words = str(error) or type(error).__name__
    return f"{words} ({cause})" if cause else words


# Gson escapes these inside strings, so that JSON can stand in HTML; outside strings JSON has none of them.
_HTML_SAFE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&='\u2028\u2029"}


def java_json(content: object) -> bytes:
    """JSON as DJL's Java side writes it: two spaces, non-ASCII as it is, HTML-safe, a final newline."""
    text = json.dumps(content, indent=2, ensure_ascii=False).translate(_HTML_SAFE)
    return (text + "\n").encode("utf-8", "replace")
