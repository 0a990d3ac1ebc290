"""TLS, client certificates and tokens between real processes (promises 18, 19 and 21)."""

import json
import os
import re
import socket
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from processes import read_until, run, student_command, teacher, train, weights
from warm_start import start

pytestmark = pytest.mark.slow
CERTS = Path(__file__).parents[2] / "deploy" / "certs.sh"
FEW = ("--policy", "os-default", "--cycles", "12", "--torch-threads", "1", "--max-wait", "30")
TOKEN = "5ecret-5ecret-5ecret-5ecret"


def make_certs(folder: Path, *names: str, days: int = 365) -> Path:
    subprocess.run([CERTS, folder, *names], check=True, capture_output=True, env={"DAYS": str(days), "PATH": os.environ["PATH"]})
    return folder


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certs(tmp_path_factory.mktemp("certs"), "localhost,127.0.0.1", "pi-1")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of another authority."""
    return make_certs(tmp_path_factory.mktemp("foreign"), "localhost,127.0.0.1", "pi-1")


def served_by(certs: Path) -> tuple[str, ...]:
    return ("--tls-cert", str(certs / "teacher.pem"), "--tls-key", str(certs / "teacher.key"), "--tls-ca", str(certs / "ca.pem"))


def edge_of(certs: Path, authority: Path | None = None) -> tuple[str, ...]:
    files = ("--tls-cert", str(certs / "pi-1.pem"), "--tls-key", str(certs / "pi-1.key"))
    return (*files, "--tls-ca", str((authority or certs) / "ca.pem"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with teacher(tmp_path_factory.mktemp("store")) as serving:
        yield serving.address


@pytest.fixture(scope="module")
def mutual(certs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with teacher(tmp_path_factory.mktemp("store"), *served_by(certs)) as serving:
        yield serving.address


@pytest.mark.needs("openssl")
def test_mutual_tls_and_a_token_change_no_result(plain: str, certs: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    token = ("--token-file", str(tmp_path / "token"))
    train(plain, tmp_path / "plain", *FEW)
    with teacher(tmp_path / "store", *served_by(certs), *token) as serving:
        train(serving.address, tmp_path / "safe", *FEW, *edge_of(certs), *token, "--streams", "2")
    assert weights(tmp_path / "safe") == weights(tmp_path / "plain")
    for file in (tmp_path / "safe").iterdir():
        assert TOKEN.encode() not in file.read_bytes(), file


def assert_refused(finished: subprocess.CompletedProcess[str], fragment: str) -> None:
    """Assert that the run ended with the cause, not after a timeout, and with at most one retry."""
    assert (finished.returncode, fragment in finished.stderr) == (2, True), finished.stderr
    assert finished.stderr.count("trying again") <= 1, "no storm of retries"


@pytest.mark.needs("openssl")
@pytest.mark.promise(number=18)
@pytest.mark.parametrize(
    ("at", "edge", "fragment"),
    [
        ("mutual", "none", "requires TLS, but this edge uses plaintext: give --tls-ca"),
        ("mutual", "authority", "requires a client certificate; give --tls-cert and --tls-key"),
        ("mutual", "foreign", "it rejects the certificate"),
        ("mutual", "wrong authority", "the teacher's certificate is not signed by the CA in --tls-ca"),
        ("mutual", "wrong name", "the teacher's certificate is not valid for 127.0.0.2"),
        (
            "plain",
            "right",
            "is no teacher with TLS: check the port; if the teacher uses plaintext, omit --tls-ca, --tls-cert and --tls-key",
        ),
    ],
)
def test_18_a_rejected_edge_exits_with_the_cause_within_seconds(
    at: str, edge: str, fragment: str, request: pytest.FixtureRequest, certs: Path, foreign: Path, tmp_path: Path
) -> None:
    address = request.getfixturevalue(at)
    flags = {
        "none": (),
        "authority": ("--tls-ca", str(certs / "ca.pem")),
        "foreign": edge_of(foreign, authority=certs),
        "wrong authority": edge_of(certs, authority=foreign),
        "wrong name": edge_of(certs),
        "right": edge_of(certs),
    }[edge]
    if edge == "wrong name":  # all of 127.0.0.0/8 is this machine, but the server listens on one address
        with forwarding("127.0.0.2", int(address.rpartition(":")[2])) as port:
            finished = run(student_command(f"127.0.0.2:{port}", tmp_path / "run", *FEW, *flags))
    else:
        finished = run(student_command(address, tmp_path / "run", *FEW, *flags))
    assert_refused(finished, fragment)


@pytest.mark.needs("openssl")
@pytest.mark.promise(number=18)
def test_18_an_expired_certificate_is_named(tmp_path: Path) -> None:
    expired = make_certs(tmp_path / "expired", "localhost,127.0.0.1", "pi-1", days=-1)
    valid = tmp_path / "valid"
    valid.mkdir()
    for name in ("ca.pem", "ca.key"):
        (valid / name).write_bytes((expired / name).read_bytes())
    make_certs(valid, "localhost,127.0.0.1", "pi-1")
    with teacher(tmp_path / "store", *served_by(expired)) as serving:
        finished = run(student_command(serving.address, tmp_path / "run", *FEW, *edge_of(valid)))
    assert_refused(finished, "the teacher's certificate has expired")
    with teacher(tmp_path / "store", *served_by(valid)) as serving:
        finished = run(student_command(serving.address, tmp_path / "run", *FEW, *edge_of(expired)))
    assert_refused(finished, "pi-1.pem, which may be expired")


@pytest.mark.promise(number=18)
@pytest.mark.promise(number=21)
def test_18_and_21_a_wrong_token_is_named_and_never_shown(tmp_path: Path) -> None:
    for name, content in (("right", TOKEN), ("wrong", "guess-guess-guess-guess")):
        (tmp_path / name).write_text(content)
    with teacher(tmp_path / "store", "--token-file", str(tmp_path / "right"), "--log-level", "debug") as serving:
        for flags, fragment in (
            ((), "the call has no token"),
            (("--token-file", str(tmp_path / "wrong")), "the token is not this"),
        ):
            finished = run(student_command(serving.address, tmp_path / "run", *FEW, *flags, "--log-level", "debug"))
            assert_refused(finished, fragment)
            assert "guess" not in finished.stderr
        train(serving.address, tmp_path / "run", *FEW, "--token-file", str(tmp_path / "right"))
        with grpc.insecure_channel(serving.address) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING, "a probe has no token"


@pytest.mark.needs("openssl")
@pytest.mark.promise(number=21)
def test_21_no_secret_is_in_any_log_metric_or_file_and_the_certificate_names_the_edge(certs: Path, tmp_path: Path) -> None:
    """With debug log, JSON, metrics, mutual TLS and a token; a second edge has a wrong token, which is a secret too."""
    wrong = "guess-guess-guess-guess"
    for name, content in (("right", TOKEN), ("wrong", wrong)):
        (tmp_path / name).write_text(content)
    loud = ("--log-level", "debug", "--log-format", "json")
    watched = (*loud, "--metrics-listen", "127.0.0.1:0", "--max-streams-per-edge", "2")
    log = tmp_path / "teacher.log"
    with teacher(tmp_path / "store", *served_by(certs), "--token-file", str(tmp_path / "right"), *watched, log=log) as serving:
        output = {
            name: run(
                student_command(
                    serving.address, tmp_path / f"run-{name}", *FEW, *edge_of(certs), "--token-file", str(tmp_path / name), *loud,
                    "--edge-id", "liar",
                )
            )
            for name in ("right", "wrong")
        }  # fmt: skip
        (where,) = re.findall(r"http://[^\"]+/metrics", log.read_text())
        with urllib.request.urlopen(where, timeout=10) as answer:
            metrics = answer.read().decode()
    assert (output["right"].returncode, output["wrong"].returncode) == (0, 2), output
    files = [path for name in output for path in (tmp_path / f"run-{name}").glob("*") if path.is_file()]
    texts = {str(path): path.read_bytes().decode("latin-1") for path in (log, *files)}
    texts |= {"metrics": metrics, **{name: finished.stderr + finished.stdout for name, finished in output.items()}}
    assert {"result.json", "trace.json", "events.jsonl", "checkpoint.edgekd"} <= {path.name for path in files}
    keys = [line for key in ("teacher.key", "pi-1.key") for line in (certs / key).read_text().splitlines() if len(line) > 8]
    for secret in (TOKEN, wrong, "Bearer", *keys):
        assert [name for name, text in texts.items() if secret in text] == [], "of all places"

    assert 'edgekd_requests_total{code="UNAUTHENTICATED",method="Describe"} 1.0' in metrics
    assert not any(name in metrics for name in ("liar", "pi-1", "127.0.0.1")), "labels are few, and name nobody"
    result = json.loads((tmp_path / "run-right" / "result.json").read_text())
    of_run = [line for line in map(json.loads, log.read_text().splitlines()) if line.get("run") == result["run_id"]]
    assert {(line["edge"], line["index"], line["count"]) for line in of_run} == {("pi-1", 0, 12)}, "as certified, not as said"
    own = [json.loads(line) for line in output["right"].stderr.splitlines()]
    assert {(line["edge"], line["run"], line.get("policy", "os-default")) for line in own} == {
        ("liar", result["run_id"], "os-default")
    }
    assert result["edge_id"] == "liar"


@pytest.mark.needs("openssl")
def test_a_certificate_without_a_name_identifies_its_edge_before_the_edge_id(certs: Path, tmp_path: Path) -> None:
    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=tmp_path)

    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "edge.key")
    openssl("req", "-new", "-key", "edge.key", "-subj", "/O=EdgeKD", "-out", "edge.request")
    authority = ("-CA", str(certs / "ca.pem"), "-CAkey", str(certs / "ca.key"), "-set_serial", "77")
    openssl("x509", "-req", "-in", "edge.request", *authority, "-days", "2", "-out", "edge.pem")
    files = ("--tls-cert", str(tmp_path / "edge.pem"), "--tls-key", str(tmp_path / "edge.key"), "--tls-ca", str(certs / "ca.pem"))
    log = tmp_path / "log"
    with teacher(tmp_path / "store", *served_by(certs), "--log-level", "debug", "--log-format", "json", log=log) as serving:
        train(serving.address, tmp_path / "out", *FEW, *files, "--edge-id", "liar")
    edges = {line["edge"] for line in map(json.loads, log.read_text().splitlines()) if "edge" in line}
    assert len(edges) == 1
    assert re.fullmatch("certificate-[0-9a-f]{16}", edges.pop())


@pytest.mark.needs("openssl")
@pytest.mark.promise(number=19)
def test_19_a_renewed_certificate_is_used_from_the_next_handshake_on(tmp_path: Path) -> None:
    certs = make_certs(tmp_path / "certs", "localhost,127.0.0.1", "pi-1")
    plain_tls = ("--tls-cert", str(certs / "teacher.pem"), "--tls-key", str(certs / "teacher.key"))
    with teacher(tmp_path / "store", *plain_tls, "--rate-limit", "160kbit") as serving:
        flags = ("--tls-ca", str(certs / "ca.pem"), *FEW)
        command = student_command(serving.address, tmp_path / "run", *flags)
        with start(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as student:
            read_until(student, "2 of 12")
            before = certificate(serving.port)
            for name in ("teacher.pem", "teacher.key"):
                (certs / name).unlink()
            make_certs(certs, "localhost,127.0.0.1", "pi-1")
            assert certificate(serving.port) != before
            (certs / "teacher.pem").write_text("rubbish")
            assert certificate(serving.port) != before, "what is no good is not taken"
            assert student.wait(60) == 0
    assert '"num_reconnects": 0' in (tmp_path / "run" / "result.json").read_text(), "the open stream lived on"


def certificate(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=10)


def test_plaintext_beyond_loopback_requires_a_flag(tmp_path: Path) -> None:
    serve = ["cloud_teacher", "serve", "--dataset", "digits:public", "--model", "cnn:width=4", "--listen", "0.0.0.0:0"]
    output = run(python(*serve, "--store", str(tmp_path)))
    assert (output.returncode, "the connection would be plaintext: give --tls-cert" in output.stderr) == (2, True)
    output = run(student_command("teacher.example:50051", tmp_path / "run", *FEW))
    assert (output.returncode, "the connection would be plaintext: give --tls-ca, or --insecure" in output.stderr) == (2, True)
    output = run(student_command("127.0.0.9:1", tmp_path / "run", *FEW[:-1], "0.1", "--insecure"))
    assert (output.returncode, "no server listens at 127.0.0.9:1" in output.stderr) == (1, True)


def python(*arguments: str) -> list[str]:
    import sys

    return [sys.executable, "-m", *arguments]


class forwarding:
    """Forwards a port on another address to 127.0.0.1:`port`. A context manager that yields the port number."""

    def __init__(self, host: str, port: int) -> None:
        self._listener, self._port = socket.create_server((host, 0)), port
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> int:
        return int(self._listener.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            theirs = socket.create_connection(("127.0.0.1", self._port))
            for source, target in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                end.close()


@pytest.mark.needs("openssl")
@pytest.mark.promise(number=21)
def test_a_comparison_reaches_its_teacher_as_a_run_does(mutual: str, certs: Path, tmp_path: Path) -> None:
    flags = ("--private", "digits:private", "--private-samples", "64", "--model", "cnn:width=4", "--cycles", "6", "--repeats", "1")
    (tmp_path / "token").write_text(TOKEN)
    token = ("--token-file", str(tmp_path / "token"))  # not required by this teacher
    policies = ("--policies", "os-default", "--out", str(tmp_path / "out"), "--insecure", "--log-level", "debug")
    finished = run(python("edge_student", "compare", "--teacher", mutual, *flags, *policies, *edge_of(certs), *token))
    assert finished.returncode == 0, finished.stderr
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"report.json", "report.html"} <= {path.name for path in files}
    keys = [line for line in (certs / "pi-1.key").read_text().splitlines() if len(line) > 8]
    texts = {str(path): path.read_bytes().decode("latin-1") for path in files} | {"said": finished.stderr + finished.stdout}
    for secret in (TOKEN, "Bearer", *keys):
        assert [name for name, text in texts.items() if secret in text] == [], "of all places"


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    ("days", "names"),
    [
        ("0", "vm"),
        ("1-2", "vm"),
        ("", "vm"),
        ("365", "vm;id"),
        ("365", "vm/CN=other"),
        ("365", "$(id)"),
        ("365", ","),
        ("365", "-vm"),
    ],
)
def test_certificates_are_made_for_names_only(days: str, names: str, tmp_path: Path) -> None:
    environment = {"DAYS": days, "PATH": os.environ["PATH"]} if days else {"DAYS": "-", "PATH": os.environ["PATH"]}
    made = subprocess.run([CERTS, tmp_path / "certs", names], check=False, capture_output=True, text=True, env=environment)
    assert made.returncode == 2
    assert made.stderr.startswith("certs.sh: ")
    assert made.stderr.count("\n") == 1
    assert not (tmp_path / "certs").exists()


@pytest.mark.needs("openssl")
def test_a_name_for_certificates_is_no_pattern_of_files(tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    subprocess.run([CERTS, "certs", "*,vm"], check=True, capture_output=True, cwd=tmp_path, env={"PATH": os.environ["PATH"]})
    words = ("openssl", "x509", "-in", "certs/teacher.pem", "-noout", "-ext", "subjectAltName")
    shown = subprocess.run(words, check=True, capture_output=True, cwd=tmp_path, text=True).stdout
    assert "DNS:*, DNS:vm" in shown
