"""InvokeEndpoint: from a call to a container's answer, or to AWS's error."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer

from mme.platform.errors import ModelError, ModelNotReadyException, ServiceUnavailable, ValidationError

pytestmark = pytest.mark.anyio


async def test_a_call_reaches_the_model_that_it_names(rig: Any) -> None:
    rig.put("lr.tar.gz")
    rig.put("team-a/et.tar.gz")
    async with rig.up():
        assert (await rig.ask("lr.tar.gz", b"[1]"))["answer"] == "lr.tar.gz"
        assert (await rig.ask("team-a/et.tar.gz"))["answer"] == "team-a/et.tar.gz"
        assert (await rig.ask("lr.tar.gz", b"[1, 2]"))["body"] == "[1, 2]"
    assert len(rig.events("load")) == 2


async def test_the_container_sees_the_headers_that_sagemaker_passes_on_and_no_others(rig: Any) -> None:
    rig.put("lr.tar.gz")
    async with rig.up():
        headers = {
            "content-type": "text/csv",
            "accept": "application/json",
            "x-amzn-sagemaker-custom-attributes": "trace=7",
            "x-amzn-sagemaker-inference-id": "call-1",
            "authorization": "AWS4-HMAC-SHA256 secret",
            "cookie": "a=b",
        }
        answer = await rig.invoke("lr.tar.gz", b"1,2", **headers)
    seen = json.loads(answer.body)["headers"]
    assert seen["content-type"] == "text/csv"
    assert seen["accept"] == "application/json"
    assert seen["x-amzn-sagemaker-custom-attributes"] == "trace=7"
    assert seen["x-amzn-sagemaker-inference-id"] == "call-1"
    assert seen["x-amzn-sagemaker-target-model"] == "lr.tar.gz"
    assert "authorization" not in seen and "cookie" not in seen
    assert answer.headers["x-Amzn-Invoked-Production-Variant"] == "AllTraffic"
    assert answer.headers["X-Amzn-SageMaker-Custom-Attributes"] == "seen=yes"
    assert answer.headers["x-Amzn-SageMaker-Inference-Id"] == "call-1"
    assert answer.headers["Content-Type"] == "application/json"


async def test_one_models_flood_is_refused_beyond_its_limit_and_costs_no_other_model_a_call(rig: Any) -> None:
    rig.put("flooded.tar.gz", invoke_gate="gate")
    rig.put("other.tar.gz")
    async with rig.up(waiting_limit=8):
        await rig.ask("other.tar.gz")
        flood = [asyncio.create_task(rig.ask("flooded.tar.gz")) for _ in range(24)]
        await rig.until(lambda: sum(call.done() for call in flood) == 16)
        for call in flood:
            if call.done():
                assert isinstance(call.exception(), ServiceUnavailable)
        assert (await rig.ask("other.tar.gz"))["answer"] == "other.tar.gz"
        rig.open("gate")
        answered = [each for each in await asyncio.gather(*flood, return_exceptions=True) if isinstance(each, dict)]
        assert [each["answer"] for each in answered] == ["flooded.tar.gz"] * 8
        assert (await rig.ask("flooded.tar.gz"))["answer"] == "flooded.tar.gz"
    assert len(rig.events("invoke")) == 11


async def test_a_flood_on_an_endpoint_of_one_model_is_refused_beyond_its_limit(rig: Any) -> None:
    rig.put("one.tar.gz", invoke_gate="gate")
    plan = rig.plan(mode="SingleModel", model_data_url=f"s3://packages/{rig.prefix}/one.tar.gz")
    async with rig.up(plan, waiting_limit=2):
        flood = [asyncio.create_task(rig.ask(None)) for _ in range(5)]
        await rig.until(lambda: sum(call.done() for call in flood) == 3)
        rig.open("gate")
        outcomes = await asyncio.gather(*flood, return_exceptions=True)
        assert sum(isinstance(each, ServiceUnavailable) for each in outcomes) == 3


async def test_calls_that_cannot_be_made_get_a_validation_error(rig: Any) -> None:
    rig.put("lr.tar.gz")
    rig.put_bytes("broken.tar.gz", b"not a package at all")
    async with rig.up():
        with pytest.raises(ValidationError, match="Endpoint nowhere of account 000000000000 not found"):
            await rig.runtime.invoke_endpoint("nowhere", {}, b"")
        with pytest.raises(ValidationError, match="Request r-1 is missing a target model header"):
            await rig.runtime.invoke_endpoint("shop", {}, b"", request_id="r-1")
        with pytest.raises(ValidationError, match=r"Failed to download model data\(bucket: packages, key: .*/none.tar"):
            await rig.invoke("none.tar.gz")
        with pytest.raises(ValidationError, match="Failed to extract model data archive"):
            await rig.invoke("broken.tar.gz")
        with pytest.raises(ValidationError, match="Failed to download model data"):
            await rig.invoke("../other-tenant/lr.tar.gz")
        with pytest.raises(ValidationError, match="Variant Blue was not found in endpoint shop"):
            await rig.invoke("lr.tar.gz", **{"x-amzn-sagemaker-target-variant": "Blue"})
        assert [model.target for model in rig.instance.cache.models] == []


async def test_a_models_own_failure_is_a_model_error_with_status_text_and_log(rig: Any) -> None:
    rig.put("bad.tar.gz", invoke_status=424, invoke_body='{"code":424,"error":"no feature"}')
    rig.put("worse.tar.gz", invoke_status=503, invoke_body="busy")
    async with rig.up():
        with pytest.raises(ModelError) as caught:
            await rig.invoke("bad.tar.gz")
        error = caught.value
        assert error.message.startswith(
            'Received client error (424) from model with message "{"code":424,"error":"no feature"}". '
            "See https://us-east-1.console.aws.amazon.com/cloudwatch/home?region=us-east-1"
            "#logEventViewer:group=/aws/sagemaker/Endpoints/shop in account 000000000000"
        )
        assert error.members["OriginalStatusCode"] == 424
        assert error.members["OriginalMessage"] == '{"code":424,"error":"no feature"}'
        assert error.members["LogStreamArn"].endswith("log-group:/aws/sagemaker/Endpoints/shop")
        with pytest.raises(ModelError, match=r"Received server error \(503\) from model"):
            await rig.invoke("worse.tar.gz")


async def test_a_model_that_cannot_be_loaded_is_a_model_error_each_time(rig: Any) -> None:
    rig.put("bad.tar.gz", load_status=500, load_message="Failed to initialize model: invoke handler failure")
    async with rig.up():
        for _ in range(2):
            with pytest.raises(ModelError, match=r"server error \(500\) from model with message \"Failed to init"):
                await rig.invoke("bad.tar.gz")
        assert rig.where("bad.tar.gz") == "disk"
    assert len(rig.events("load")) == 2


async def test_a_call_that_waits_too_long_for_its_load_is_told_so_and_the_load_goes_on(rig: Any) -> None:
    rig.put("slow.tar.gz", load_gate="gate")
    async with rig.up(invoke_timeout_s=0.5):
        with pytest.raises(ModelNotReadyException, match="still being loaded"):
            await rig.invoke("slow.tar.gz")
        rig.open("gate")
        await rig.instance.cache.acquire("slow.tar.gz")
        assert (await rig.ask("slow.tar.gz"))["answer"] == "slow.tar.gz"
    assert len(rig.events("load")) == 1


async def test_a_load_that_takes_too_long_is_given_up(rig: Any) -> None:
    rig.put("slow.tar.gz", load_gate="gate")
    async with rig.up(load_timeout_s=0.5), asyncio.timeout(60):
        while rig.where("slow.tar.gz") != "disk":  # on a busy machine the time may be over before the package is here
            with pytest.raises(ModelError, match="not loaded within 0.5 s"):
                await rig.invoke("slow.tar.gz")
        rig.open("gate")


async def test_a_model_that_does_not_answer_in_time_is_a_model_error(rig: Any) -> None:
    rig.put("lr.tar.gz", invoke_gate="gate")
    async with rig.up(invoke_timeout_s=1):
        rig.instance.cache.release(await rig.instance.cache.acquire("lr.tar.gz"))  # a load has more time than that
        with pytest.raises(ModelError, match=r"server error \(0\) from model with message \"Your invocation timed out"):
            await rig.invoke("lr.tar.gz")
        rig.open("gate")
        assert (await rig.ask("lr.tar.gz"))["answer"] == "lr.tar.gz"
        assert rig.instance.in_flight == 0


async def test_a_call_whose_container_dies_is_a_model_error_and_the_next_one_answers(rig: Any) -> None:
    rig.put("lr.tar.gz")
    rig.put("killer.tar.gz", exit_in="invoke")
    async with rig.up():
        first = (await rig.ask("lr.tar.gz"))["pid"]
        with pytest.raises(ModelError, match="closed the connection before it answered"):
            await rig.invoke("killer.tar.gz")
        assert (await rig.ask("lr.tar.gz"))["pid"] != first


async def test_a_model_that_the_container_calls_failed_is_loaded_again_by_the_next_call(rig: Any) -> None:
    rig.put("lr.tar.gz")
    async with rig.up():
        await rig.ask("lr.tar.gz")
        rig.open("fail_lr.tar.gz")
        with pytest.raises(ModelError, match="Python worker disconnected"):
            await rig.invoke("lr.tar.gz")
        assert (await rig.ask("lr.tar.gz"))["answer"] == "lr.tar.gz"
    assert len(rig.events("load")) == 2 and len(rig.events("unload")) == 1


async def test_a_single_model_endpoint_serves_its_package_and_takes_no_target(rig: Any) -> None:
    rig.put("only.tar.gz")
    plan = rig.plan(mode="SingleModel", model_data_url=f"s3://packages/{rig.prefix}/only.tar.gz")
    async with rig.up(plan):
        assert (await rig.ask(None))["answer"] == "only.tar.gz"
        with pytest.raises(ValidationError, match="is not a multi-model endpoint and does not support target model"):
            await rig.invoke("only.tar.gz")


async def test_calls_go_to_variants_by_weight_or_by_name(rig: Any) -> None:
    rig.put("lr.tar.gz")
    async with rig.up(rig.plan(rig.variant("Blue", weight=1), rig.variant("Green", weight=0))):
        for _ in range(5):
            assert (await rig.invoke("lr.tar.gz")).headers["x-Amzn-Invoked-Production-Variant"] == "Blue"
        named = await rig.invoke("lr.tar.gz", **{"x-amzn-sagemaker-target-variant": "Green"})
        assert named.headers["x-Amzn-Invoked-Production-Variant"] == "Green"


async def test_a_caller_that_goes_away_leaves_nothing_in_use(rig: Any) -> None:
    rig.put("lr.tar.gz", invoke_gate="gate")
    async with rig.up():
        call = asyncio.create_task(rig.invoke("lr.tar.gz"))
        await rig.reached("gate")
        call.cancel()
        await asyncio.wait({call})
        assert rig.instance.in_flight == 0
        assert [model.in_use for model in rig.instance.cache.models] == [0]
        rig.open("gate")


async def test_a_streamed_answer_comes_as_event_stream_messages_piece_by_piece(rig: Any) -> None:
    rig.put("stream.tar.gz", pieces=["one\n", "two\n"])
    async with rig.up():
        answer = await rig.stream("stream.tar.gz")
        assert answer.headers["Content-Type"] == "application/vnd.amazon.eventstream"
        assert answer.headers["X-Amzn-SageMaker-Content-Type"] == "application/jsonlines"
        assert [(event[":event-type"], payload) for event, payload in await decoded(answer)] == [
            ("PayloadPart", b"one\n"),
            ("PayloadPart", b"two\n"),
        ]
        assert rig.instance.in_flight == 0


async def test_a_stream_that_breaks_off_ends_with_a_model_stream_error(rig: Any) -> None:
    rig.put("stream.tar.gz", pieces=["one\n"], break_off=True)
    async with rig.up():
        *_, (event, payload) = await decoded(await rig.stream("stream.tar.gz"))
        assert event[":message-type"] == "exception" and event[":exception-type"] == "ModelStreamError"
        assert json.loads(payload)["ErrorCode"] == "StreamBroken"


async def test_a_call_for_a_stream_that_fails_at_once_gets_the_same_errors_as_any_other(rig: Any) -> None:
    rig.put("bad.tar.gz", invoke_status=424, invoke_body="no feature")
    rig.put("lr.tar.gz")
    async with rig.up():
        with pytest.raises(ModelError, match=r"client error \(424\) from model with message \"no feature\""):
            await rig.stream("bad.tar.gz")
        with pytest.raises(ValidationError, match="Failed to download"):
            await rig.stream("none.tar.gz")
        await rig.ask("lr.tar.gz")
        rig.open("fail_lr.tar.gz")
        with pytest.raises(ModelError, match="disconnected"):
            await rig.stream("lr.tar.gz")
        [(_, payload)] = await decoded(await rig.stream("lr.tar.gz"))
        assert json.loads(payload)["answer"] == "lr.tar.gz"
        assert rig.instance.in_flight == 0


async def test_a_reader_that_leaves_a_stream_leaves_nothing_in_use(rig: Any) -> None:
    rig.put("stream.tar.gz", pieces=["one\n", "two\n"])
    async with rig.up():
        answer = await rig.stream("stream.tar.gz")
        with answer.frames as frames:
            await anext(frames)
        assert rig.instance.in_flight == 0
        assert [model.in_use for model in rig.instance.cache.models] == [0]


async def decoded(answer: Any) -> list[tuple[dict[str, Any], bytes]]:
    buffer = EventStreamBuffer()
    with answer.frames as frames:
        async for frame in frames:
            buffer.add_data(frame)
    return [(message.headers, message.payload) for message in buffer]
