"""What CloudWatch and CloudWatch Logs hold of an endpoint, read with AWS's own client from moto."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from mme.platform.config import ObjectStore, PlatformConfig
from mme.platform.errors import ModelError, UnsupportedOperation
from mme.platform.hosting import publisher as publisher_module
from mme.platform.hosting.metrics import Meter
from mme.platform.hosting.publisher import Publisher
from mme.platform.statistics import refuse_others

pytestmark = pytest.mark.anyio


def client(service: str, url: str) -> Any:
    return botocore.session.get_session().create_client(
        service, region_name="us-east-1", endpoint_url=url, aws_access_key_id="key", aws_secret_access_key="secret"
    )


def read(url: str, name: str, statistic: str, namespace: str = "AWS/SageMaker", endpoint: str = "shop") -> float | None:
    now = datetime.datetime.now(datetime.UTC)
    answer = client("cloudwatch", url).get_metric_statistics(
        Namespace=namespace,
        MetricName=name,
        Dimensions=[{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": "AllTraffic"}],
        StartTime=now - datetime.timedelta(minutes=30),
        EndTime=now + datetime.timedelta(minutes=1),
        Period=3600,
        Statistics=[statistic],
    )
    points = answer["Datapoints"]
    return float(points[0][statistic]) if points else None


async def test_cloudwatch_holds_the_calls_hits_and_loads_of_an_endpoint(rig: Any, moto_url: str) -> None:
    rig.put("a.tar.gz")
    rig.put("b.tar.gz")
    rig.put("bad.tar.gz", invoke_status=424, invoke_body="no")
    async with rig.up(rig.plan(environment={"STAND_IN_CAPACITY": "2"}), moto_url=moto_url):
        for target in ("a", "a", "a", "b"):
            await rig.ask(f"{target}.tar.gz")
        with pytest.raises(ModelError):
            await rig.ask("bad.tar.gz")
        assert await rig.hosting.flush(60)
        assert read(moto_url, "Invocations", "Sum") == 5
        assert read(moto_url, "InvocationsPerInstance", "Sum") == 5
        assert read(moto_url, "Invocation4XXErrors", "Sum") == 1
        assert read(moto_url, "Invocation5XXErrors", "Sum") == 0
        assert read(moto_url, "InvocationModelErrors", "Sum") == 1
        assert read(moto_url, "ModelCacheHit", "Average") == pytest.approx(2 / 5)
        assert read(moto_url, "ModelCacheHit", "SampleCount") == 5
        assert read(moto_url, "LoadedModelCount", "Maximum") == 2
        assert read(moto_url, "ModelLoadingWaitTime", "SampleCount") == 3
        assert read(moto_url, "ModelDownloadingTime", "SampleCount") == 3
        assert read(moto_url, "ModelLoadingTime", "SampleCount") == 3
        assert read(moto_url, "ModelUnloadingTime", "SampleCount") == 1
        for name in ("ModelLatency", "OverheadLatency"):
            assert 0 < read(moto_url, name, "Average") < 60e6  # type: ignore[operator]


async def test_each_period_is_published_by_itself_with_the_instances_own_figures(
    rig: Any, moto_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mme.platform.hosting.publisher._FIRST_AFTER_S", 0.1)
    async with rig.up(rig.plan_named("periodic"), moto_url=moto_url, metrics_period_s=0.2):
        await rig.until(lambda: read(moto_url, "LoadedModelCount", "SampleCount", endpoint="periodic"))
        namespace = "/aws/sagemaker/Endpoints"
        for name in ("CPUUtilization", "MemoryUtilization", "DiskUtilization"):
            await rig.until(lambda name=name: read(moto_url, name, "Average", namespace, "periodic") is not None)


async def test_get_metric_data_reads_them_too(rig: Any, moto_url: str) -> None:
    rig.put("a.tar.gz")
    async with rig.up(rig.plan_named("data"), moto_url=moto_url):
        await rig.runtime.invoke_endpoint("data", {"x-amzn-sagemaker-target-model": "a.tar.gz"}, b"")
        assert await rig.hosting.flush(60)
        now = datetime.datetime.now(datetime.UTC)
        dimensions = [{"Name": "EndpointName", "Value": "data"}, {"Name": "VariantName", "Value": "AllTraffic"}]
        metric = {"Namespace": "AWS/SageMaker", "MetricName": "Invocations", "Dimensions": dimensions}
        answer = client("cloudwatch", moto_url).get_metric_data(
            MetricDataQueries=[{"Id": "i", "MetricStat": {"Metric": metric, "Period": 3600, "Stat": "Sum"}}],
            StartTime=now - datetime.timedelta(minutes=30),
            EndTime=now + datetime.timedelta(minutes=1),
        )
        assert sum(answer["MetricDataResults"][0]["Values"]) == 1


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("GetMetricStatistics", {"ExtendedStatistics": ["p99"]}),
        ("GetMetricStatistics", {"Statistics": ["Sum"], "ExtendedStatistics": ["p99"]}),
        ("GetMetricStatistics", {"ExtendedStatistics.member.1": "p99"}),
        ("GetMetricData", {"MetricDataQueries": [{"Id": "i", "MetricStat": {"Stat": "p99"}}]}),
        ("GetMetricData", {"MetricDataQueries.member.2.MetricStat.Stat": "p99"}),
        ("PutMetricAlarm", {"ExtendedStatistic": "p99"}),
    ],
)
def test_a_percentile_is_refused_by_name(operation: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedOperation, match=f"work out p99 from; ask {operation} for Average, Maximum, "):
        refuse_others(operation, parameters)


def test_what_moto_works_out_may_be_asked_for() -> None:
    refuse_others("GetMetricStatistics", {"Statistics": ["Average", "SampleCount"]})
    refuse_others("GetMetricData", {"MetricDataQueries": [{"MetricStat": {"Stat": "Sum"}}, {"Expression": "m1 * 2"}]})
    refuse_others("DescribeAlarms", {})


async def test_the_containers_lines_are_in_cloudwatch_logs_and_in_a_file(rig: Any, moto_url: str) -> None:
    async with rig.up(rig.plan_named("talker"), moto_url=moto_url):
        file = rig.config.folder / "talker" / "AllTraffic" / "0" / "container.log"
        await rig.until(lambda: "a line of the container" in file.read_text())
        assert await rig.hosting.flush(60)
        instance = rig.hosting.endpoint("talker").instances[0]
        events = client("logs", moto_url).get_log_events(
            logGroupName="/aws/sagemaker/Endpoints/talker", logStreamName=f"AllTraffic/{instance.id}"
        )["events"]
        assert "a line of the container" in [event["message"] for event in events]


async def test_a_log_group_that_was_deleted_is_made_again(tmp_path: Path, moto_url: str, publisher: Any) -> None:
    group = "/aws/sagemaker/Endpoints/again"
    publisher.log(group, "v/i", int(time.time() * 1000), "first")
    assert publisher.flush(60)
    client("logs", moto_url).delete_log_group(logGroupName=group)
    publisher.log(group, "v/i", int(time.time() * 1000), "second")
    publisher.flush(60)
    assert publisher.flush(60)
    events = client("logs", moto_url).get_log_events(logGroupName=group, logStreamName="v/i")["events"]
    assert [event["message"] for event in events] == ["second"]


async def test_calls_go_on_without_cloudwatch_and_what_waits_is_bounded(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "METRIC_BOUND", 10)
    monkeypatch.setattr(publisher_module, "LOG_BOUND", 3)
    rig.put("a.tar.gz")
    async with rig.up():
        for _ in range(5):
            await rig.ask("a.tar.gz")
            assert not await rig.hosting.flush(60)
        sender = rig.hosting._publisher
        for at_ms in range(10):
            sender.log("group", "stream", at_ms, f"line {at_ms}")
        assert len(sender._metrics) <= 10
        assert [line for *_, line in sender._lines] == ["line 7", "line 8", "line 9"]


async def test_what_waited_for_cloudwatch_arrives_when_it_is_back(
    tmp_path: Path, moto_url: str, publisher: Any
) -> None:
    away = PlatformConfig(home=tmp_path, folder=tmp_path, moto_url="http://127.0.0.1:9")
    publisher._config = away
    meter = Meter("AWS/SageMaker", "patient", "AllTraffic")
    meter.add("Invocations", 1)
    publisher.metrics(meter.namespace, meter.drain(datetime.datetime.now(datetime.UTC)))
    assert not publisher.flush(60)
    publisher._config = PlatformConfig(home=tmp_path, folder=tmp_path, moto_url=moto_url)
    publisher._clients.clear()
    assert publisher.flush(60)
    assert read(moto_url, "Invocations", "Sum", endpoint="patient") == 1


@pytest.fixture
def publisher(tmp_path: Path, moto_url: str) -> Iterator[Publisher]:
    config = PlatformConfig(home=tmp_path, folder=tmp_path, moto_url=moto_url)
    made = Publisher(config, ObjectStore("", "key", "secret"))
    made.start()
    yield made
    made.close()


def test_a_metric_that_aws_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="'Invokations' is not a metric of SageMaker endpoints"):
        Meter("AWS/SageMaker", "e", "v").add("Invokations", 1)
