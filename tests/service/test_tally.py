"""What is counted in integers arrives in the metrics, once."""

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from service.metrics import Metrics
from service.tally import add_to_histogram


def test_observations_added_at_once_read_like_single_ones() -> None:
    texts = []
    for at_once in (False, True):
        registry = CollectorRegistry()
        histogram = Histogram("x", "x", buckets=(1, 10), registry=registry)
        if at_once:
            add_to_histogram(histogram, [2, 0, 1], 23.5)
        else:
            for value in (0.5, 1, 22):
                histogram.observe(value)
        texts.append([line for line in generate_latest(registry).decode().splitlines() if "created" not in line])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("value", [0.00005, 0.0001, 0.00011, 0.2, 5.0])
def test_latencies_fall_into_the_buckets_that_prometheus_would_choose(value: float) -> None:
    tallied, plain = Metrics(), Metrics()
    tallied.tally.took("lookup", value)
    plain.latency.labels("lookup").observe(value)

    def seen(metrics: Metrics) -> list[str]:
        lines = metrics.render().decode().splitlines()
        return [line for line in lines if line.startswith("hfh_request_seconds") and "created" not in line]

    assert seen(tallied) == seen(plain)


def test_counts_are_moved_once() -> None:
    metrics = Metrics()
    for status in (200, 200, 422):
        metrics.tally.answered("bag", status)
    metrics.tally.looked_up("users", 70)
    metrics.tally.looked_up("users", 1)
    value = metrics.registry.get_sample_value
    for move in (metrics.tally.move, metrics.render):
        move()
        assert value("hfh_requests_total", {"route": "bag", "status": "200"}) == 2
        assert value("hfh_requests_total", {"route": "bag", "status": "422"}) == 1
        assert value("hfh_ids_total", {"table": "users"}) == 71
        assert value("hfh_request_ids_count") == 2
        assert value("hfh_request_ids_bucket", {"le": "64.0"}) == 1
