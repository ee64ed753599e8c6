"""Decides which errors the platform answers: AWS's codes and statuses, one class each, put on the wire by the gateway.

AwsError
    the control plane (plain ClientError in boto3): ValidationException, ResourceNotFound, UnknownOperation,
        UnsupportedOperation, AccessDenied, UnrecognizedClient, MissingAuthenticationToken, InvalidNextToken
    the runtime (modelled classes in boto3): ModelError, ModelNotReadyException, ValidationError, ServiceUnavailable,
        InternalFailure, InternalDependencyException
"""

from __future__ import annotations

from collections.abc import Mapping


class AwsError(Exception):
    """An error as AWS answers it: `code` and `status` by class, `message` for people, `members` beside the message.

    `members` are further members of the error's body, such as OriginalStatusCode of a ModelError.
    """

    code: str
    status: int = 400

    def __init__(self, message: str, members: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.members = dict(members or {})


class ValidationException(AwsError):
    """The control plane's word for nearly everything a caller can do wrong."""

    code = "ValidationException"


class SerializationException(AwsError):
    """The body is not what the protocol calls for: no JSON, or a value of another type."""

    code = "SerializationException"


class ResourceNotFound(AwsError):
    code = "ResourceNotFound"


class UnknownOperation(AwsError):
    """The service has no operation of this name."""

    code = "UnknownOperationException"


class UnsupportedOperation(AwsError):
    """AWS has the operation; this platform does not, and says so by name."""

    code = "UnsupportedOperation"
    status = 501


class AccessDenied(AwsError):
    code = "AccessDeniedException"
    status = 403


class UnrecognizedClient(AwsError):
    """Nobody has the access key that the request is signed with."""

    code = "UnrecognizedClientException"
    status = 403


class MissingAuthenticationToken(AwsError):
    """The request isn't signed (amazon-sagemaker-examples#290 shows status and text)."""

    code = "MissingAuthenticationTokenException"
    status = 403


class InvalidNextToken(AwsError):
    """Application Auto Scaling's word for a page that can't be."""

    code = "InvalidNextTokenException"


class ValidationError(AwsError):
    """The runtime's word for a call that can't be made: no such endpoint, no target model, no such variant."""

    code = "ValidationError"


class ModelError(AwsError):
    """The model answered a 4xx or 5xx of its own: OriginalStatusCode, OriginalMessage, LogStreamArn, ErrorCode."""

    code = "ModelError"
    status = 424

    def __init__(
        self,
        message: str,
        *,
        original_status: int,
        original_message: str,
        log_stream_arn: str,
        error_code: str = "INTERNAL_FAILURE_FROM_MODEL",
    ) -> None:
        members = {
            "ErrorCode": error_code,
            "LogStreamArn": log_stream_arn,
            "OriginalMessage": original_message,
            "OriginalStatusCode": original_status,
        }
        super().__init__(message, members)


class ModelNotReadyException(AwsError):
    """The model still loads after the time an invocation may take; its load goes on."""

    code = "ModelNotReadyException"
    status = 429


class ServiceUnavailable(AwsError):
    code = "ServiceUnavailable"
    status = 503


class InternalFailure(AwsError):
    code = "InternalFailure"
    status = 500


class InternalDependencyException(AwsError):
    code = "InternalDependencyException"
    status = 530
