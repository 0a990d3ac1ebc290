"""Settings of cloud-teacher: valid values are accepted, invalid ones are rejected with their flag."""

from pathlib import Path

import pytest

from cloud_teacher.settings import ServeConfig, TrainConfig, is_loopback, parse_listen


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:0", "127.0.0.1", 0), ("localhost:50051", "localhost", 50051), ("[::1]:65535", "::1", 65535)],
)
def test_listen_is_host_and_port(text: str, host: str, port: int) -> None:
    assert parse_listen(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["", "localhost", ":50051", "::1:50051", "h:", "h:65536", "h:-1", "h:+1", "h:http", "h: 1", "h:\u0661"]
)
def test_other_listens_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--listen is"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("edge.lan", False)],
)
def test_loopback_is_distinguished_from_other_addresses(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"listen": "nowhere"}, "--listen is 'nowhere'"),
        ({"rate_limit": "fast"}, "--rate-limit is 'fast'"),
        ({"cores": "3-1"}, "--cores is '3-1'"),
        ({"max_streams": 0}, "--max-streams is 0"),
        ({"torch_threads": 0}, "--torch-threads is 0"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_wrong_serve_setting_is_named(changes: dict[str, object], fragment: str) -> None:
    settings: dict[str, object] = {"listen": "127.0.0.1:0", "dataset": "digits:public", "model": "cnn"}
    ServeConfig(**settings)
    with pytest.raises(ValueError, match=fragment):
        ServeConfig(**(settings | changes))


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"out": Path("weights.pt")}, "must end in .safetensors"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"lr": 0.0}, "--lr is 0.0"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"momentum": 1.0}, "--momentum is 1.0"),
        ({"weight_decay": -1.0}, "--weight-decay is -1.0"),
        ({"seed": 2**64}, "--seed is"),
    ],
)
def test_wrong_train_setting_is_named(changes: dict[str, object], fragment: str) -> None:
    settings: dict[str, object] = {"dataset": "digits:public", "model": "cnn", "out": Path("t.safetensors")}
    TrainConfig(**settings)
    with pytest.raises(ValueError, match=fragment):
        TrainConfig(**(settings | changes))
