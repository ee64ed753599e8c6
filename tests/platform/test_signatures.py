"""A signature holds if botocore would have made it with a key of this home's, and else the refusal is AWS's."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import Request as Sent
from urllib.request import urlopen

import boto3
import pytest
from botocore import xform_name
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from mme.platform.config import ObjectStore
from mme.platform.keyring import Keyring
from mme.platform.launch import Running
from mme.platform.messages import Body, Request
from mme.platform.proxy import Answer
from mme.platform.signatures import NotAuthentic, Secret, Signatures, claim_of
from mme.platform.state import State

HOST = "127.0.0.1:8080"
TARGET = "/endpoints/e/invocations"


class OneKey:
    async def secret(self, access_key: str) -> Secret | None:
        return Secret("secret") if access_key == "key" else None


class NoWire:
    """For a request whose body is not read here."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the body was asked for {name}")


def as_received(method: str, url: str, headers: dict[str, str]) -> Request:
    parts = urlsplit(url)
    lower = {name.lower(): value for name, value in headers.items()}
    return Request(method, parts.path, parts.query, {"host": HOST, **lower}, Body(NoWire(), 0, expects_continue=False))


def check(request: Request, body: bytes | None, now: float | None = None) -> None:
    signatures = Signatures(OneKey()) if now is None else Signatures(OneKey(), lambda: now)
    protocol = "rest-json" if body is not None else "rest-xml"
    asyncio.run(signatures.check(claim_of(request, protocol), request, protocol, body))


paths = st.lists(st.text("ab/.%~ +\u00e9\u65e5:@", max_size=6), max_size=3).map(
    lambda parts: "/" + quote("/".join(parts))
)
values = st.text('ab  =;,"/+~', max_size=12).map(str.strip)
queries = st.dictionaries(st.sampled_from(["prefix", "list-type", "x-id", "a b"]), values).map(
    lambda query: "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query.items())
)
headers = st.dictionaries(st.sampled_from(["Content-Type", "X-Amzn-Thing", "x-amz-meta-b", "Accept"]), values)


@given(st.sampled_from(["GET", "PUT", "POST"]), paths, queries, headers, st.binary(max_size=20), st.booleans())
def test_what_botocore_signs_holds_in_headers_and_in_addresses_and_nothing_else_does(
    method: str, path: str, query: str, extra: dict[str, str], body: bytes, is_s3: bool
) -> None:
    url = f"http://{HOST}{path}?{query}" if query else f"http://{HOST}{path}"
    service = "s3" if is_s3 else "sagemaker"
    one = AWSRequest(method, url, dict(extra), body)
    (S3SigV4Auth if is_s3 else SigV4Auth)(Credentials("key", "secret"), service, "eu-west-3").add_auth(one)
    signed = dict(one.headers.items())
    check(as_received(method, url, signed), None if is_s3 else body)
    changes = [
        as_received("DELETE", url, signed),
        as_received(method, url + ("&b=c" if query else "?b=c"), signed),
        as_received(method, f"http://{HOST}/other?{query}", signed),
        as_received(method, url, signed | {"Host": "127.0.0.1:9"}),
        as_received(method, url, signed | {"Authorization": signed["Authorization"].replace("eu-west-3", "eu-west-1")}),
    ]
    for changed in changes:
        with pytest.raises(NotAuthentic, match="does not match the signature you provided"):
            check(changed, None if is_s3 else body)
    if not is_s3:
        with pytest.raises(NotAuthentic, match="does not match the signature you provided"):
            check(as_received(method, url, signed), body + b"more")

    one = AWSRequest(method, url, {})
    (S3SigV4QueryAuth if is_s3 else SigV4QueryAuth)(Credentials("key", "secret"), service, "eu-west-3", 60).add_auth(
        one
    )
    check(as_received(method, one.url, {}), None if is_s3 else b"")
    with pytest.raises(NotAuthentic):
        check(as_received(method, one.url.replace("Expires=60", "Expires=61"), {}), None if is_s3 else b"")


@pytest.mark.parametrize(
    ("service", "seconds", "words"),
    [
        ("sagemaker", 301, r"Signature expired: \d{8}T\d{6}Z is now earlier than \S+Z \(\S+Z - 5 min\.\)"),
        ("sagemaker", -302, r"Signature not yet current: \d{8}T\d{6}Z is still later than \S+Z \(\S+Z \+ 5 min\.\)"),
        ("sagemaker", 290, None),
        ("s3", 800, None),
        ("s3", 901, "The difference between the request time and the current time is too large."),
        ("s3", -902, "The difference between the request time and the current time is too large."),
    ],
)
def test_a_signature_is_worth_something_for_some_minutes(service: str, seconds: float, words: str | None) -> None:
    one = AWSRequest("POST", f"http://{HOST}/", {}, b"")
    (S3SigV4Auth if service == "s3" else SigV4Auth)(Credentials("key", "secret"), service, "us-east-1").add_auth(one)
    request = as_received("POST", one.url, dict(one.headers.items()))
    now = datetime.strptime(f"{one.context['timestamp']}+0000", "%Y%m%dT%H%M%SZ%z").timestamp() + seconds
    if words is None:
        check(request, None if service == "s3" else b"", now)
    else:
        with pytest.raises(NotAuthentic, match=words):
            check(request, None if service == "s3" else b"", now)


def test_a_time_that_cannot_be_is_no_signature() -> None:
    one = AWSRequest("POST", f"http://{HOST}/", {}, b"")
    SigV4Auth(Credentials("key", "secret"), "sagemaker", "us-east-1").add_auth(one)
    signed = {name: value.replace(one.context["timestamp"][:8], "20260230") for name, value in one.headers.items()}
    with pytest.raises(NotAuthentic, match="There is no time '20260230T"):
        check(as_received("POST", one.url, signed), b"")


def refusal(there: Running, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, str]:
    """Status and code of the error that a raw request is answered with."""
    with pytest.raises(HTTPError) as error:
        urlopen(Sent(there.url + target, body or None, headers, method=method))
    with error.value as answer:
        text, kind = answer.read().decode(), answer.headers.get("x-amzn-errortype")
    if text.startswith("<?xml"):
        found = re.search("<Code>(.*)</Code>", text)
        assert found is not None
        return answer.code, found[1]
    return answer.code, kind or json.loads(text)["__type"]


JSON = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "SageMaker.ListModels"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
WHO = b"Action=GetCallerIdentity&Version=2011-06-15"
SORTS: list[tuple[str, str, str, dict[str, str], bytes]] = [
    ("s3", "GET", "/a-bucket", {}, b""),
    ("sts", "POST", "/", FORM, WHO),
    ("sagemaker", "POST", "/", JSON, b"{}"),
    ("sagemaker", "POST", TARGET, {"Content-Type": "text/csv"}, b"1"),
]


@pytest.mark.parametrize(
    ("case", "codes"),
    [
        (
            "a key nobody has",
            [
                (403, "InvalidAccessKeyId"),
                (403, "InvalidClientTokenId"),
                (400, "UnrecognizedClientException"),
                (403, "UnrecognizedClientException"),
            ],
        ),
        (
            "another secret",
            [
                (403, "SignatureDoesNotMatch"),
                (403, "SignatureDoesNotMatch"),
                (400, "InvalidSignatureException"),
                (403, "InvalidSignatureException"),
            ],
        ),
        (
            "a token where there is none",
            [
                (400, "InvalidToken"),
                (403, "InvalidClientTokenId"),
                (400, "UnrecognizedClientException"),
                (403, "UnrecognizedClientException"),
            ],
        ),
        (
            "half a signature",
            [
                (400, "AuthorizationHeaderMalformed"),
                (400, "IncompleteSignature"),
                (400, "IncompleteSignatureException"),
                (403, "IncompleteSignatureException"),
            ],
        ),
    ],
)
def test_each_protocol_has_its_own_names_for_what_is_wrong(
    platform: Running, sign: Callable[..., dict[str, str]], case: str, codes: list[tuple[int, str]]
) -> None:
    keys = {
        "a key nobody has": {"access_key": "AKIANOBODY"},
        "another secret": {"secret_key": "another"},
        "a token where there is none": {"token": "token"},
    }.get(case, {})
    for (service, method, target, given_headers, body), code in zip(SORTS, codes, strict=True):
        sent = sign(platform, service, method, target, given_headers, body, **keys)
        if case == "half a signature":
            sent["Authorization"] = sent["Authorization"].partition(", Signature=")[0]
        assert refusal(platform, method, target, sent, body) == code


@pytest.mark.parametrize(
    ("method", "target", "sent", "code"),
    [
        ("GET", "/", {}, (403, "AccessDenied")),
        ("PUT", "/a-bucket/key", {"Content-Type": "text/csv"}, (403, "AccessDenied")),
        ("POST", "/", FORM, (403, "MissingAuthenticationToken")),
        ("POST", "/", JSON, (400, "MissingAuthenticationTokenException")),
        ("POST", TARGET, {"Content-Type": "text/csv"}, (403, "MissingAuthenticationTokenException")),
        ("GET", "/?Action=AssumeRole", {}, (403, "AccessDenied")),
        ("POST", "/?Action=AssumeRoleWithSAML", FORM, (403, "MissingAuthenticationToken")),
        (
            "POST",
            "/",
            {"X-Amz-Target": "Cognito.GetId"},
            (400, "MissingAuthenticationTokenException"),
        ),
    ],
)
def test_what_is_not_signed_is_refused(
    platform: Running, method: str, target: str, sent: dict[str, str], code: tuple[int, str]
) -> None:
    assert refusal(platform, method, target, sent, b"" if method == "GET" else WHO) == code


def test_a_body_that_was_not_signed_is_not_stored(platform: Running, sign: Any, client: Any) -> None:
    s3 = client("s3")
    s3.create_bucket(Bucket="signed-bodies")
    sent = sign(platform, "s3", "PUT", "/signed-bodies/key", {}, b"signed")
    assert refusal(platform, "PUT", "/signed-bodies/key", sent, b"forged") == (400, "XAmzContentSHA256Mismatch")
    assert "Contents" not in s3.list_objects_v2(Bucket="signed-bodies")


def test_an_upload_in_signed_chunks_is_stored_as_what_it_holds(platform: Running, client: Any) -> None:
    """As rclone and the SDKs of other languages send it where there is no TLS."""
    client("s3").create_bucket(Bucket="signed-chunks")

    class Chunked(S3SigV4Auth):  # type: ignore[misc]
        def payload(self, request: Any) -> str:
            return "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"

    body, size = b"model package", 13
    sent = {"Content-Encoding": "aws-chunked", "X-Amz-Decoded-Content-Length": str(size)}
    one = AWSRequest("PUT", f"{platform.url}/signed-chunks/key", sent, body)
    auth = Chunked(Credentials(platform.access_key, platform.secret_key), "s3", platform.region)
    auth.add_auth(one)
    before = one.headers["Authorization"].rpartition("=")[2]
    framed = b""
    for chunk in (body, b""):
        parts = ("AWS4-HMAC-SHA256-PAYLOAD", one.context["timestamp"], auth.credential_scope(one), before, digest(b""))
        before = auth.signature("\n".join([*parts, digest(chunk)]), one)
        framed += b"%x;chunk-signature=%b\r\n%b\r\n" % (len(chunk), before.encode(), chunk)
    urlopen(Sent(one.url, framed, dict(one.headers.items()), method="PUT")).close()
    assert client("s3").get_object(Bucket="signed-chunks", Key="key")["Body"].read() == body


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def whoami(platform: Running) -> Callable[..., str]:
    def ask(access_key: str, secret_key: str, token: str | None = None) -> str:
        session = boto3.Session(access_key, secret_key, token, region_name=platform.region)
        sts = session.client("sts", endpoint_url=platform.url, config=Config(retries={"total_max_attempts": 1}))
        try:
            arn: str = sts.get_caller_identity()["Arn"]
            return arn
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        finally:
            sts.close()

    return ask


def test_keys_of_users_hold_until_they_are_deleted_or_made_inactive(client: Any, whoami: Any) -> None:
    iam = client("iam")
    iam.create_user(UserName="signs")
    key = iam.create_access_key(UserName="signs")["AccessKey"]
    pair = key["AccessKeyId"], key["SecretAccessKey"]
    assert whoami(*pair) == "arn:aws:iam::000000000000:user/signs"
    assert whoami(pair[0], "another") == "SignatureDoesNotMatch"
    iam.update_access_key(UserName="signs", AccessKeyId=pair[0], Status="Inactive")
    assert whoami(*pair) == "InvalidClientTokenId"
    iam.update_access_key(UserName="signs", AccessKeyId=pair[0], Status="Active")
    assert whoami(*pair) == "arn:aws:iam::000000000000:user/signs"
    iam.delete_access_key(UserName="signs", AccessKeyId=pair[0])
    assert whoami(*pair) == "InvalidClientTokenId"


def test_keys_of_a_session_hold_with_its_token_and_open_s3_too(client: Any, whoami: Any, platform: Running) -> None:
    client("iam").create_role(RoleName="signs", AssumeRolePolicyDocument="{}")
    role = "arn:aws:iam::000000000000:role/signs"
    made = client("sts").assume_role(RoleArn=role, RoleSessionName="session")["Credentials"]
    keys = made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"]
    assert whoami(*keys) == "arn:aws:sts::000000000000:assumed-role/signs/session"
    assert whoami(*keys[:2]) == "InvalidClientTokenId"
    assert whoami(*keys[:2], "another") == "InvalidClientTokenId"
    s3 = boto3.Session(*keys, region_name=platform.region).client("s3", endpoint_url=platform.url)
    s3.create_bucket(Bucket="of-a-session")
    s3.put_object(Bucket="of-a-session", Key="a key", Body=b"bytes")
    with urlopen(s3.generate_presigned_url("get_object", Params={"Bucket": "of-a-session", "Key": "a key"})) as answer:
        assert answer.read() == b"bytes"
    s3.close()


def test_a_session_token_makes_keys_of_ones_own_that_end_with_ones_key(
    client: Any, whoami: Any, platform: Running
) -> None:
    iam = client("iam")
    iam.create_user(UserName="tokens")
    key = iam.create_access_key(UserName="tokens")["AccessKey"]
    user = boto3.Session(key["AccessKeyId"], key["SecretAccessKey"], region_name=platform.region)
    sts = user.client("sts", endpoint_url=platform.url)
    made, other = (sts.get_session_token()["Credentials"] for _ in range(2))
    assert made["AccessKeyId"].startswith("ASIA") and made["SecretAccessKey"] != other["SecretAccessKey"]
    keys = made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"]
    assert whoami(*keys) == "arn:aws:iam::000000000000:user/tokens"
    assert whoami(*keys[:2]) == "InvalidClientTokenId"
    assert whoami(*keys[:2], other["SessionToken"]) == "InvalidClientTokenId"
    session = boto3.Session(*keys, region_name=platform.region)
    s3, runtime, again = (
        session.client(name, endpoint_url=platform.url) for name in ("s3", "sagemaker-runtime", "sts")
    )
    s3.create_bucket(Bucket="of-a-token")
    s3.put_object(Bucket="of-a-token", Key="key", Body=b"bytes")
    assert s3.get_object(Bucket="of-a-token", Key="key")["Body"].read() == b"bytes"
    with pytest.raises(ClientError, match="Endpoint none of account 000000000000 not found"):
        runtime.invoke_endpoint(EndpointName="none", Body=b"")
    with pytest.raises(ClientError, match="Cannot call GetSessionToken with session credentials"):
        again.get_session_token()
    iam.delete_access_key(UserName="tokens", AccessKeyId=key["AccessKeyId"])
    assert whoami(*keys) == "InvalidClientTokenId"
    for one in (sts, s3, runtime, again):
        one.close()


ROLE = {"RoleArn": "arn:aws:iam::000000000000:role/anybody"}


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("AssumeRoleWithWebIdentity", ROLE | {"RoleSessionName": "any", "WebIdentityToken": "x" * 20}),
        ("AssumeRoleWithSAML", ROLE | {"PrincipalArn": ROLE["RoleArn"], "SAMLAssertion": "abcd"}),
        ("GetFederationToken", {"Name": "any"}),
    ],
)
def test_no_keys_are_given_for_what_nobody_here_can_verify(
    platform: Running, client: Any, sign: Any, operation: str, arguments: dict[str, str]
) -> None:
    """Signed or not: boto3 signs the last one alone."""
    with pytest.raises(ClientError, match=f"{operation} is not supported by the local platform; "):
        getattr(client("sts"), xform_name(operation))(**arguments)
    body = urlencode({"Action": operation, "Version": "2011-06-15", **arguments}).encode()
    for sent in (FORM, sign(platform, "sts", "POST", "/", FORM, body)):
        assert refusal(platform, "POST", "/", sent, body) == (501, "UnsupportedOperation")


def test_who_or_what_is_in_iam_keeps_its_name(client: Any, whoami: Any) -> None:
    iam = client("iam")
    iam.create_user(UserName="named")
    key = iam.create_access_key(UserName="named")["AccessKey"]
    iam.create_group(GroupName="named")
    for rename, arguments, member in (
        (iam.update_user, {"UserName": "named", "NewUserName": "other"}, "NewUserName"),
        (iam.update_group, {"GroupName": "named", "NewGroupName": "other"}, "NewGroupName"),
        (
            iam.update_server_certificate,
            {"ServerCertificateName": "named", "NewServerCertificateName": "other"},
            "NewServerCertificateName",
        ),
    ):
        with pytest.raises(ClientError, match=f"{member} of Update[A-Za-z]+ is not supported by the local platform"):
            rename(**arguments)
    iam.update_user(UserName="named", NewPath="/team/")
    assert whoami(key["AccessKeyId"], key["SecretAccessKey"]) == "arn:aws:iam::000000000000:user/team/named"


class KeyringOfAChange(Keyring):
    """Its IAM says that a key holds, and it is made inactive before that arrives."""

    asked = 0

    async def _holds(self, access_key: str, user_name: str) -> bool:
        self.asked += 1
        if self.asked == 1:
            self.learn(as_received("POST", "/", {}), b"Action=UpdateAccessKey", Answer(200, [], b""))
            return True
        return False


def test_a_key_that_changes_while_iam_is_asked_for_it_is_asked_for_again(tmp_path: Any) -> None:
    state = State(tmp_path)
    made = b"<UserName>one</UserName><AccessKeyId>AKIA</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>"
    keyring = KeyringOfAChange(ObjectStore("http://127.0.0.1:9", "own", "secret"), None, None, state)
    keyring.learn(as_received("POST", "/", {}), b"Action=CreateAccessKey&UserName=one", Answer(200, [], made))
    assert asyncio.run(keyring.secret("AKIA")) is None
    assert keyring.asked == 2
    state.close()


def test_signatures_may_be_left_unchecked(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, start_platform: Any, connect: Any
) -> None:
    """And a user's key goes on to hold when the platform starts anew and checks."""
    monkeypatch.setenv("MME_SIGV4", "off")
    with start_platform(tmp_path) as there:
        stranger = boto3.Session("anybody", "secret", region_name=there.region)
        s3 = stranger.client("s3", endpoint_url=there.url)
        s3.create_bucket(Bucket="open")
        s3.put_object(Bucket="open", Key="key", Body=b"bytes")
        with urlopen(f"{there.url}/open/key") as answer:
            assert answer.read() == b"bytes"
        s3.close()
        iam = connect(there)("iam")
        iam.create_user(UserName="stays")
        key = iam.create_access_key(UserName="stays")["AccessKey"]
    monkeypatch.delenv("MME_SIGV4")
    with start_platform(tmp_path) as there:
        user = boto3.Session(key["AccessKeyId"], key["SecretAccessKey"], region_name=there.region)
        sts = user.client("sts", endpoint_url=there.url)
        assert sts.get_caller_identity()["Arn"] == "arn:aws:iam::000000000000:user/stays"
        sts.close()
        assert refusal(there, "GET", "/open/key", {}) == (403, "AccessDenied")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://localhost:8888"}, 200),
    ],
)
def test_a_page_in_a_browser_cannot_drive_the_platform(
    platform: Running, sign: Any, sent: dict[str, str], status: int
) -> None:
    """Not even one that could sign."""
    signed = sign(platform, "sts", "POST", "/", FORM | {name: sent[name] for name in sent if name == "Host"}, WHO)
    try:
        with urlopen(Sent(platform.url, WHO, signed | sent, method="POST")) as answer:
            assert answer.status == status
            assert not any(name.lower().startswith("access-control") for name in answer.headers)
    except HTTPError as error:
        with error:
            assert error.code == status
            assert "the local platform does not answer" in error.read().decode()
