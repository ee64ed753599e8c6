"""S3 through the gateway, as boto3 uses it: right, or refused by name; an object's bytes are always those put."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.client
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from mme.platform import s3
from mme.platform.launch import Running

BUCKET = "objects-of-tests"
BYTES = b"the bytes of the object"


@pytest.fixture(scope="module")
def bucket(client: Any) -> Any:
    """A client of S3, and a bucket with an object `kept` whose bytes are BYTES."""
    made = client("s3")
    made.create_bucket(Bucket=BUCKET)
    return made


@pytest.fixture
def kept(bucket: Any) -> Any:
    bucket.put_object(Bucket=BUCKET, Key="kept", Body=BYTES)
    return bucket


def code_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ClientError) as refused:
        call()
    return str(refused.value.response["Error"]["Code"])


@pytest.mark.parametrize(
    "key", ["plain", "a/b/c.tar.gz", "with space", "größe/大.txt", "a+b=c&d;e?f#g%20h", "it's (1)!"]
)
def test_an_object_is_found_under_its_key_and_listed_by_it(bucket: Any, key: str) -> None:
    bucket.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
    assert bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read() == key.encode()
    assert key in [one["Key"] for one in bucket.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert key in [one["Key"] for one in bucket.list_objects(Bucket=BUCKET)["Contents"]]
    bucket.delete_object(Bucket=BUCKET, Key=key)
    assert code_of(lambda: bucket.head_object(Bucket=BUCKET, Key=key)) == "404"


def test_a_package_in_parts_arrives_whole(bucket: Any, tmp_path: Path) -> None:
    sent, came = tmp_path / "sent", tmp_path / "came"
    sent.write_bytes(os.urandom(21 << 20))
    parts = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
    bucket.upload_file(str(sent), BUCKET, "parts", Config=parts)
    bucket.download_file(BUCKET, "parts", str(came), Config=parts)
    assert hashlib.sha256(came.read_bytes()).digest() == hashlib.sha256(sent.read_bytes()).digest()
    assert bucket.get_object(Bucket=BUCKET, Key="parts", Range="bytes=7-9")["Body"].read() == sent.read_bytes()[7:10]


def test_a_transfer_given_up_leaves_nothing(bucket: Any) -> None:
    upload = bucket.create_multipart_upload(Bucket=BUCKET, Key="given-up")["UploadId"]
    bucket.upload_part(Bucket=BUCKET, Key="given-up", UploadId=upload, PartNumber=1, Body=b"x" * (5 << 20))
    bucket.abort_multipart_upload(Bucket=BUCKET, Key="given-up", UploadId=upload)
    assert code_of(lambda: bucket.head_object(Bucket=BUCKET, Key="given-up")) == "404"


SAID: dict[str, Any] = {
    "Metadata": {"team-name": "a b"},
    "ContentType": "text/csv",
    "CacheControl": "no-cache",
    "ContentDisposition": "attachment",
    "ContentEncoding": "gzip",
    "ContentLanguage": "de",
    "StorageClass": "STANDARD_IA",
}


def said_of(bucket: Any, key: str) -> dict[str, Any]:
    """What HEAD and GET say of an object beside its bytes; they say the same."""
    said = [
        {name: value for name, value in call(Bucket=BUCKET, Key=key).items() if name in SAID}
        for call in (bucket.head_object, bucket.get_object)
    ]
    assert said[0] == said[1]
    return said[0]


PLAIN = {"ContentType": "binary/octet-stream", "Metadata": {}}


def test_metadata_and_type_come_back_as_they_were_put(bucket: Any) -> None:
    bucket.put_object(Bucket=BUCKET, Key="described.txt", Body=b"", **SAID)
    assert said_of(bucket, "described.txt") == SAID
    bucket.put_object(Bucket=BUCKET, Key="described.txt", Body=b"")
    assert said_of(bucket, "described.txt") == PLAIN
    bucket.put_object(Bucket=BUCKET, Key="described.txt", Body=b"", **SAID)
    bucket.delete_object(Bucket=BUCKET, Key="described.txt")
    bucket.put_object(Bucket=BUCKET, Key="DESCRIBED.TXT", Body=b"")
    assert said_of(bucket, "DESCRIBED.TXT") == PLAIN


def test_metadata_of_an_upload_in_parts_come_back(bucket: Any) -> None:
    where = {"Bucket": BUCKET, "Key": "described-parts"}
    upload = bucket.create_multipart_upload(**where, **SAID)["UploadId"]
    part = bucket.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"x")["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": part}]}
    assert bucket.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=parts)["ETag"].endswith('-1"')
    assert said_of(bucket, "described-parts") == SAID


def test_a_copy_keeps_what_is_said_of_its_source_or_replaces_all_of_it(bucket: Any) -> None:
    put = bucket.put_object(Bucket=BUCKET, Key="source (größe)", Body=b"bytes", **SAID)
    source = {"Bucket": BUCKET, "Key": "source (größe)"}
    copied = bucket.copy_object(Bucket=BUCKET, Key="kept-copy", CopySource=source)
    assert copied["CopyObjectResult"]["ETag"] == put["ETag"]
    assert said_of(bucket, "kept-copy") == SAID
    other = {"Metadata": {"a": "b"}, "ContentType": "text/plain"}
    for key in ("other-copy", "source (größe)"):
        copied = bucket.copy_object(Bucket=BUCKET, Key=key, CopySource=source, MetadataDirective="REPLACE", **other)
        assert copied["CopyObjectResult"]["ETag"] == put["ETag"]
        assert said_of(bucket, key) == other
        assert bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"bytes"
    assert code_of(lambda: bucket.copy_object(Bucket=BUCKET, Key="kept-copy", CopySource=f"{BUCKET}/kept-copy")) == (
        "InvalidRequest"
    )
    missing = f"{BUCKET}/missing"
    assert code_of(lambda: bucket.copy_object(Bucket=BUCKET, Key="any", CopySource=missing)) == "NoSuchKey"


def test_a_checksum_is_told_to_who_asks_and_of_the_whole_object_only(client: Any, bucket: Any) -> None:
    put = bucket.put_object(Bucket=BUCKET, Key="checked", Body=BYTES, ChecksumAlgorithm="CRC32")
    asked = bucket.head_object(Bucket=BUCKET, Key="checked", ChecksumMode="ENABLED")
    assert asked["ETag"] == put["ETag"] and len(asked["ChecksumCRC32"]) == 8
    assert "ChecksumCRC32" not in bucket.head_object(Bucket=BUCKET, Key="checked")
    part = bucket.get_object(Bucket=BUCKET, Key="checked", Range="bytes=4-8", ChecksumMode="ENABLED")
    assert part["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert part["Body"].read() == BYTES[4:9] and "ChecksumCRC32" not in part
    with urlopen(bucket.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "checked"})) as answer:
        names = {name.lower() for name in answer.headers}
    assert not {name for name in names if name.startswith("x-amz-")} - {"x-amz-id-2", "x-amz-request-id"}


def test_conditions_of_reading_are_heeded(kept: Any) -> None:
    head = kept.head_object(Bucket=BUCKET, Key="kept")
    etag, modified = head["ETag"], head["LastModified"]
    before = modified - datetime.timedelta(hours=1)
    for call in (kept.head_object, kept.get_object):
        where = {"Bucket": BUCKET, "Key": "kept"}
        for met in ({"IfMatch": etag}, {"IfNoneMatch": '"other"'}, {"IfUnmodifiedSince": modified}):
            call(**where, **met)
        call(**where, IfModifiedSince=before)
        for unmet, code in (
            ({"IfMatch": '"other"'}, "PreconditionFailed"),
            ({"IfUnmodifiedSince": before}, "PreconditionFailed"),
            ({"IfNoneMatch": etag}, "304"),
            ({"IfModifiedSince": modified}, "304"),
        ):
            expected = "412" if call == kept.head_object and code != "304" else code
            assert code_of(lambda: call(**where, **unmet)) == expected, unmet  # noqa: B023


def test_a_file_put_into_the_folder_by_hand_has_the_type_of_its_name(platform: Running, bucket: Any) -> None:
    bucket.put_object(Bucket=BUCKET, Key="by-hand.json", Body=b"before", **SAID)
    bucket.put_object(Bucket=BUCKET, Key="by-hand.json", Body=b"after", Metadata={"a": "b"})
    (platform.home / "objects" / BUCKET / "also-by-hand.json").write_text("{}")
    assert said_of(bucket, "by-hand.json") == {"ContentType": "binary/octet-stream", "Metadata": {"a": "b"}}
    deadline = time.monotonic() + 20
    while "also-by-hand.json" not in [one["Key"] for one in bucket.list_objects_v2(Bucket=BUCKET)["Contents"]]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert said_of(bucket, "also-by-hand.json") == {"ContentType": "application/json", "Metadata": {}}


def test_what_is_deleted_by_the_hundred_is_forgotten(platform: Running, bucket: Any) -> None:
    for key in ("a & b", "<c>"):
        bucket.put_object(Bucket=BUCKET, Key=key, Body=b"bytes", **SAID)
    bucket.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "a & b"}, {"Key": "<c>"}], "Quiet": True})
    with sqlite3.connect(f"file:{platform.home / 'state.db'}?mode=ro", uri=True) as state:
        keys = [key for (key,) in state.execute("SELECT key FROM object WHERE bucket = ?", (BUCKET,))]
    state.close()
    assert "a & b" not in keys and "<c>" not in keys


def test_pages_of_a_listing_hold_each_key_once(bucket: Any) -> None:
    keys = [f"pages/{number:02}" for number in range(25)]
    for key in keys:
        bucket.put_object(Bucket=BUCKET, Key=key, Body=b"")
    pages = bucket.get_paginator("list_objects_v2").paginate(
        Bucket=BUCKET, Prefix="pages/", PaginationConfig={"PageSize": 10}
    )
    assert [one["Key"] for page in pages for one in page["Contents"]] == keys
    folders = bucket.list_objects_v2(Bucket=BUCKET, Delimiter="/", Prefix="pag")["CommonPrefixes"]
    assert folders == [{"Prefix": "pages/"}]
    deleted = bucket.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key} for key in keys]})["Deleted"]
    assert sorted(one["Key"] for one in deleted) == keys


def test_a_copy_has_the_bytes_of_its_source(kept: Any) -> None:
    kept.copy_object(Bucket=BUCKET, Key="copy", CopySource={"Bucket": BUCKET, "Key": "kept"})
    assert kept.get_object(Bucket=BUCKET, Key="copy")["Body"].read() == BYTES


def test_a_large_copy_is_made_in_parts_and_has_the_bytes_of_its_source(bucket: Any) -> None:
    sent = os.urandom(12 << 20)
    bucket.put_object(Bucket=BUCKET, Key="large (größe)", Body=sent)
    parts = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
    bucket.copy({"Bucket": BUCKET, "Key": "large (größe)"}, BUCKET, "large copy", Config=parts)
    assert bucket.get_object(Bucket=BUCKET, Key="large copy")["Body"].read() == sent


def test_a_part_is_copied_of_the_object_that_is_meant_and_for_who_has_the_keys(platform: Running, kept: Any) -> None:
    there = {"endpoint_url": platform.url, "region_name": platform.region}
    upload = kept.create_multipart_upload(Bucket=BUCKET, Key="parted")["UploadId"]
    part = {"Bucket": BUCKET, "Key": "parted", "UploadId": upload, "PartNumber": 1}
    source = {"Bucket": BUCKET, "Key": "kept"}
    other = {"CopySource": source, "CopySourceIfMatch": "another", **part}
    assert code_of(lambda: kept.upload_part_copy(**other)) == "PreconditionFailed"
    missing = {"Bucket": BUCKET, "Key": "missing"}
    assert code_of(lambda: kept.upload_part_copy(CopySource=missing, **part)) == "NoSuchKey"
    with contextlib.closing(boto3.Session("AKIAOTHER", "wrong").client("s3", **there)) as stranger:
        assert code_of(lambda: stranger.upload_part_copy(CopySource=source, **part)) == "InvalidAccessKeyId"
    with contextlib.closing(boto3.Session(platform.access_key, "wrong").client("s3", **there)) as stranger:
        assert code_of(lambda: stranger.upload_part_copy(CopySource=source, **part)) == "SignatureDoesNotMatch"
    kept.abort_multipart_upload(Bucket=BUCKET, Key="parted", UploadId=upload)


def keys_in(bucket: Any, prefix: str) -> list[str]:
    return [one["Key"] for one in bucket.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]


def test_an_empty_folder_is_answered_and_leaves_its_prefix_usable(bucket: Any) -> None:
    where = {"Bucket": BUCKET, "Key": "consoles/new/"}
    put = bucket.put_object(**where)
    assert put["ETag"] == f'"{hashlib.md5(b"").hexdigest()}"'
    assert keys_in(bucket, "consoles/") == []
    bucket.put_object(Bucket=BUCKET, Key="consoles/new/one.tar.gz", Body=BYTES)
    assert bucket.put_object(**where, Body=b"")["ETag"] == put["ETag"]
    assert code_of(lambda: bucket.get_object(**where)) == "NoSuchKey"
    assert code_of(lambda: bucket.head_object(**where)) == "404"
    bucket.delete_object(**where)
    assert keys_in(bucket, "consoles/") == ["consoles/new/one.tar.gz"]
    assert code_of(lambda: bucket.put_object(Bucket="no-such-bucket", Key="folder/")) == "NoSuchBucket"
    assert code_of(lambda: bucket.delete_object(Bucket="no-such-bucket", Key="folder/")) == "NoSuchBucket"


@pytest.mark.parametrize(
    ("operation", "arguments", "code"),
    [
        ("put_object", {"Body": b"bytes"}, "NotImplemented"),
        ("copy_object", {"CopySource": f"{BUCKET}/kept"}, "NotImplemented"),
        ("create_multipart_upload", {}, "NotImplemented"),
        ("get_object", {}, "NoSuchKey"),
        ("head_object", {}, "404"),
    ],
)
def test_no_object_has_the_key_of_a_folder(kept: Any, operation: str, arguments: dict[str, Any], code: str) -> None:
    assert code_of(lambda: getattr(kept, operation)(Bucket=BUCKET, Key="a-folder/", **arguments)) == code
    assert keys_in(kept, "a-folder") == []
    assert kept.get_object(Bucket=BUCKET, Key="kept")["Body"].read() == BYTES


def test_an_object_is_not_taken_for_the_folder_of_its_name(kept: Any) -> None:
    for key in ("kept/", "kept/below"):
        where = {"Bucket": BUCKET, "Key": key}
        for read, code in ((kept.get_object, "NoSuchKey"), (kept.head_object, "404")):
            assert code_of(lambda: read(**where)) == code  # noqa: B023
        assert code_of(lambda: kept.copy_object(Bucket=BUCKET, Key="copy", CopySource=where)) == "NoSuchKey"  # noqa: B023
        kept.delete_object(**where)
    assert kept.get_object(Bucket=BUCKET, Key="kept")["Body"].read() == BYTES


def test_what_is_deleted_by_the_hundred_may_name_what_is_no_object(kept: Any) -> None:
    for key in ("all/&one", "all/two", "other/three"):
        kept.put_object(Bucket=BUCKET, Key=key, Body=BYTES)
    keys = ["all", "all/", "all/&one", "all/&/", "other", "kept/", "kept/below", "never"]
    many = {"Objects": [{"Key": key} for key in keys]}
    assert sorted(one["Key"] for one in kept.delete_objects(Bucket=BUCKET, Delete=many)["Deleted"]) == sorted(keys)
    assert "Deleted" not in kept.delete_objects(Bucket=BUCKET, Delete=many | {"Quiet": True})
    assert keys_in(kept, "all/") + keys_in(kept, "other/") == ["all/two", "other/three"]
    assert kept.get_object(Bucket=BUCKET, Key="kept")["Body"].read() == BYTES
    assert code_of(lambda: kept.delete_objects(Bucket="no-such-bucket", Delete=many)) == "NoSuchBucket"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("kept/below", "'kept' is an object"),
        ("kept/further/below", "'kept' is an object"),
        ("above", "'above/' is a folder"),
        ("n" * 256, "longer than the 255 bytes of a file's name"),
    ],
)
def test_a_key_that_no_file_can_have_is_refused_by_name_and_changes_nothing(kept: Any, key: str, words: str) -> None:
    kept.put_object(Bucket=BUCKET, Key="above/object", Body=BYTES)
    where = {"Bucket": BUCKET, "Key": key}
    for write in (
        lambda: kept.put_object(**where),
        lambda: kept.copy_object(**where, CopySource=f"{BUCKET}/kept"),
        lambda: kept.create_multipart_upload(**where),
    ):
        with pytest.raises(ClientError, match=words) as refused:
            write()
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    kept.delete_object(**where)
    for each in ("kept", "above/object"):
        assert kept.get_object(Bucket=BUCKET, Key=each)["Body"].read() == BYTES
    assert keys_in(kept, "n") == []


def test_an_upload_in_parts_is_not_completed_under_a_key_that_was_taken_meanwhile(kept: Any) -> None:
    where = {"Bucket": BUCKET, "Key": "meanwhile"}
    upload = kept.create_multipart_upload(**where)["UploadId"]
    part = kept.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"x")["ETag"]
    kept.put_object(Bucket=BUCKET, Key="meanwhile/object", Body=BYTES)
    parts = {"Parts": [{"PartNumber": 1, "ETag": part}]}
    assert (
        code_of(lambda: kept.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=parts))
        == "InvalidRequest"
    )
    kept.abort_multipart_upload(**where, UploadId=upload)
    assert kept.get_object(Bucket=BUCKET, Key="meanwhile/object")["Body"].read() == BYTES


def test_a_bucket_that_is_not_empty_stays(kept: Any) -> None:
    assert code_of(lambda: kept.delete_bucket(Bucket=BUCKET)) == "BucketNotEmpty"
    assert kept.get_object(Bucket=BUCKET, Key="kept")["Body"].read() == BYTES


def test_a_bucket_comes_and_goes_in_both_places(bucket: Any) -> None:
    bucket.create_bucket(Bucket="comes-and-goes")
    bucket.create_bucket(Bucket="comes-and-goes")  # one's own bucket again is no error in us-east-1
    bucket.put_bucket_tagging(Bucket="comes-and-goes", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    assert "comes-and-goes" in [one["Name"] for one in bucket.list_buckets()["Buckets"]]
    bucket.delete_bucket(Bucket="comes-and-goes")
    assert code_of(lambda: bucket.head_bucket(Bucket="comes-and-goes")) == "404"
    assert code_of(lambda: bucket.get_bucket_tagging(Bucket="comes-and-goes")) == "NoSuchBucket"
    assert code_of(lambda: bucket.put_object(Bucket="comes-and-goes", Key="a", Body=b"")) == "NoSuchBucket"


def test_the_configuration_of_a_bucket_is_kept(bucket: Any) -> None:
    bucket.put_public_access_block(Bucket=BUCKET, PublicAccessBlockConfiguration={"BlockPublicAcls": True})
    answer = bucket.get_public_access_block(Bucket=BUCKET)
    assert answer["PublicAccessBlockConfiguration"]["BlockPublicAcls"]
    assert bucket.get_bucket_location(Bucket=BUCKET)["LocationConstraint"] is None
    assert "Status" not in bucket.get_bucket_versioning(Bucket=BUCKET)


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("put_object_tagging", {"Tagging": {"TagSet": [{"Key": "a", "Value": "b"}]}}),
        ("get_object_tagging", {}),
        ("delete_object_tagging", {}),
        ("put_object_acl", {"ACL": "private"}),
        ("get_object_acl", {}),
        ("get_object_attributes", {"ObjectAttributes": ["ETag"]}),
        ("put_object", {"Body": b"other", "IfNoneMatch": "*"}),
        ("put_object", {"Body": b"other", "IfMatch": "abc"}),
        ("put_object", {"Body": b"other", "Tagging": "a=b"}),
        ("delete_object", {"IfMatch": "abc"}),
        ("delete_object", {"VersionId": "1"}),
        ("get_object", {"VersionId": "1"}),
        (
            "select_object_content",
            {"ExpressionType": "SQL", "Expression": "x", "InputSerialization": {}, "OutputSerialization": {}},
        ),
        ("restore_object", {}),
        ("copy_object", {"CopySource": {"Bucket": BUCKET, "Key": "kept"}, "CopySourceIfMatch": "abc"}),
    ],
)
def test_what_the_store_would_get_wrong_is_refused_and_changes_nothing(
    kept: Any, operation: str, arguments: dict[str, Any]
) -> None:
    assert code_of(lambda: getattr(kept, operation)(Bucket=BUCKET, Key="kept", **arguments)) == "NotImplemented"
    assert kept.get_object(Bucket=BUCKET, Key="kept")["Body"].read() == BYTES


@pytest.mark.parametrize(("member", "value"), [("VersionId", "1"), ("ETag", '"abc"'), ("Size", 1)])
def test_a_condition_of_a_deletion_by_the_hundred_is_refused_by_name(kept: Any, member: str, value: Any) -> None:
    many = {"Objects": [{"Key": "kept", member: value}]}
    with pytest.raises(ClientError, match=f"does not support {member} of DeleteObjects; leave it out"):
        kept.delete_objects(Bucket=BUCKET, Delete=many)
    assert kept.get_object(Bucket=BUCKET, Key="kept")["Body"].read() == BYTES


def test_a_refusal_names_what_is_not_supported(kept: Any) -> None:
    with pytest.raises(
        ClientError, match=r"does not support a conditional write \(If-None-Match\); leave if-none-match out"
    ):
        kept.put_object(Bucket=BUCKET, Key="kept", Body=b"other", IfNoneMatch="*")


@pytest.mark.parametrize(
    "operation", ["put_bucket_versioning", "put_bucket_replication", "put_object_lock_configuration"]
)
def test_configuration_that_the_store_would_not_heed_is_refused(bucket: Any, operation: str) -> None:
    arguments: dict[str, Any] = {
        "put_bucket_versioning": {"VersioningConfiguration": {"Status": "Enabled"}},
        "put_bucket_replication": {"ReplicationConfiguration": {"Role": "r", "Rules": []}},
        "put_object_lock_configuration": {},
    }[operation]
    assert code_of(lambda: getattr(bucket, operation)(Bucket=BUCKET, **arguments)) == "NotImplemented"


def test_a_bucket_of_another_account_is_not_ours(bucket: Any) -> None:
    assert code_of(lambda: bucket.head_bucket(Bucket=BUCKET, ExpectedBucketOwner="000000000001")) == "403"
    bucket.head_bucket(Bucket=BUCKET, ExpectedBucketOwner="000000000000")


def test_after_a_refused_upload_the_connection_serves_the_next_call(kept: Any) -> None:
    for _ in range(3):
        for body in (b"small", b"x" * (3 << 20)):
            assert code_of(lambda body=body: kept.put_object(Bucket=BUCKET, Key="kept", Body=body, IfMatch="a"))
            assert kept.get_object(Bucket=BUCKET, Key="kept")["Body"].read() == BYTES


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_a_signed_address_needs_no_keys(client: Any, kept: Any, version: str) -> None:
    signer = client("s3", signature_version=version)
    where = {"Bucket": BUCKET, "Key": "signed größe/+a b"}
    put = Request(signer.generate_presigned_url("put_object", Params=where), b"signed bytes", method="PUT")
    put.add_header("Content-Type", "")
    urlopen(put).close()
    more = {"ResponseContentType": "text/csv"} if version == "s3" else {}
    with urlopen(signer.generate_presigned_url("get_object", Params=where | more)) as answer:
        assert answer.read() == b"signed bytes"


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ("/kept?", "/other?", "SignatureDoesNotMatch"),
        ("Signature=", "Signature=x", "SignatureDoesNotMatch"),
        ("AWSAccessKeyId=", "AWSAccessKeyId=x", "InvalidAccessKeyId"),
        ("Expires=", "Expires=1", "SignatureDoesNotMatch"),
    ],
)
def test_a_signed_address_that_was_changed_opens_nothing(
    client: Any, kept: Any, before: str, after: str, code: str
) -> None:
    signer = client("s3", signature_version="s3")
    address = signer.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "kept"})
    with pytest.raises(HTTPError) as refusal:
        urlopen(address.replace(before, after))
    with refusal.value as answer:
        assert answer.code == 403
        assert f"<Code>{code}</Code>" in answer.read().decode()


def test_a_signed_address_opens_nothing_when_its_time_is_over(client: Any, kept: Any) -> None:
    signer = client("s3", signature_version="s3")
    where = {"Bucket": BUCKET, "Key": "kept"}
    with pytest.raises(HTTPError) as refusal:
        urlopen(signer.generate_presigned_url("get_object", Params=where, ExpiresIn=-1))
    with refusal.value as answer:
        assert b"Request has expired" in answer.read()


def test_a_body_is_asked_for_before_it_is_sent(platform: Running, bucket: Any) -> None:
    """A client that waits for 100 Continue, as boto3 does for PutObject, gets it."""
    address = bucket.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": "asked"})
    host, _, target = address.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=20)
    try:
        connection.putrequest("PUT", f"/{target}")
        connection.putheader("Expect", "100-continue")
        connection.putheader("Content-Length", "5")
        connection.endheaders()
        first = connection.sock.recv(1024)
        assert first.startswith(b"HTTP/1.1 100 Continue")
        connection.send(b"bytes")
        assert connection.getresponse().status in (200, 400)
    finally:
        connection.close()


def test_an_upload_that_breaks_off_leaves_the_object_as_it_was(platform: Running, kept: Any, client: Any) -> None:
    address = client("s3", signature_version="s3v4").generate_presigned_url(
        "put_object", Params={"Bucket": BUCKET, "Key": "kept"}
    )
    host, _, target = address.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.putrequest("PUT", f"/{target}")
    connection.putheader("Content-Length", "1000000")
    connection.endheaders(b"half of it")
    connection.close()
    assert kept.get_object(Bucket=BUCKET, Key="kept")["Body"].read() == BYTES


@pytest.mark.parametrize(
    ("method", "path", "query", "place"),
    [
        ("GET", "/", "", "objects"),
        ("PUT", "/b", "", "both"),
        ("PUT", "/b/", "", "both"),
        ("DELETE", "/b", "", "both"),
        ("GET", "/b", "list-type=2&prefix=a", "objects"),
        ("PUT", "/b", "policy", "bucket"),
        ("PUT", "/b", "tagging=", "bucket"),
        ("PUT", "/b/k", "partNumber=1&uploadId=u", "objects"),
        ("POST", "/b/k", "uploads", "objects"),
        ("GET", "/b/k", "X-Amz-Signature=s&X-Amz-Expires=9&x-id=GetObject", "objects"),
        ("GET", "/b/k", "AWSAccessKeyId=a&Signature=s&Expires=9", "objects"),
    ],
)
def test_a_call_goes_where_it_is_done_right(method: str, path: str, query: str, place: str) -> None:
    assert s3.place(s3.call(method, path, query, {})) == place


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("PUT", "/b/k", "tagging"),
        ("PUT", "/b/k", "acl&uploadId=u"),
        ("PUT", "/b/k", "somethingNew"),
        ("POST", "/b", ""),
        ("POST", "/b/k", ""),
        ("OPTIONS", "/b/k", ""),
        ("GET", "/b", "versions"),
        ("GET", "/b", "uploads"),
        ("DELETE", "/", ""),
        ("PUT", "/b", "policy2"),
    ],
)
def test_what_is_not_known_to_be_right_goes_nowhere(method: str, path: str, query: str) -> None:
    with pytest.raises(s3.NotImplementedHere, match=f"the local S3 does not support {method} of "):
        s3.place(s3.call(method, path, query, {}))
