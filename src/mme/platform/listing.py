"""Decides what a List operation answers: which resources, in which order, on which page."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Any

from mme.platform.errors import ValidationException

DEFAULT_PAGE = 10  # "This value defaults to 10", ListEndpoints in the SageMaker API reference


def page(
    documents: Iterable[Mapping[str, Any]], request: Mapping[str, Any], *, kind: str, members: tuple[str, ...]
) -> tuple[list[dict[str, Any]], str | None]:
    """The summaries that `request` asks for, with the token of the next page if there is one.

    `kind` is the prefix of the member that names a resource (Model in ModelName); `members` are those of a summary.
    A page goes on behind the last resource of the one before, so what is created or deleted meanwhile shifts nothing.
    Raises ValidationException for a token that this operation did not give.
    """
    sort_member = {"Name": f"{kind}Name", "Status": f"{kind}Status"}.get(request.get("SortBy", ""), "CreationTime")
    descending = request.get("SortOrder", "Descending") == "Descending"

    def place(document: Mapping[str, Any]) -> tuple[Any, str]:
        return document[sort_member], document[f"{kind}Name"]

    found = sorted((one for one in documents if _matches(one, request, kind)), key=place, reverse=descending)
    if "NextToken" in request:
        last = _read_token(request["NextToken"], sort_member, descending)
        found = [one for one in found if (place(one) < last if descending else place(one) > last)]
    size = request.get("MaxResults", DEFAULT_PAGE)
    summaries = [{name: one[name] for name in members} for one in found[:size]]
    token = _token(place(found[size - 1]), sort_member, descending) if len(found) > size else None
    return summaries, token


def _matches(document: Mapping[str, Any], request: Mapping[str, Any], kind: str) -> bool:
    for when in ("CreationTime", "LastModifiedTime"):
        if f"{when}Before" in request and not document[when] < request[f"{when}Before"]:
            return False
        if f"{when}After" in request and not document[when] >= request[f"{when}After"]:
            return False
    if request.get("NameContains", "").lower() not in document[f"{kind}Name"].lower():
        return False
    return request.get("StatusEquals") in (None, document.get(f"{kind}Status"))


def _token(place: tuple[Any, str], sort_member: str, descending: bool) -> str:
    return base64.urlsafe_b64encode(json.dumps([sort_member, descending, *place]).encode()).decode()


def _read_token(token: str, sort_member: str, descending: bool) -> tuple[Any, str]:
    try:
        member, was_descending, value, name = json.loads(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        member = value = name = None
    kind = float if sort_member == "CreationTime" else str
    is_place = isinstance(value, kind) and isinstance(name, str)
    if not is_place or member != sort_member or was_descending is not descending:
        raise ValidationException(
            f"NextToken {token!r} was not given by this operation with this order; repeat it without a token"
        )
    return value, name
