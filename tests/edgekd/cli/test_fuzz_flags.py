"""Any flag value and any settings file is either read or rejected with one ValueError that names the mistake."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import pytest
from hostile import ANY_JSON, CONTROL, allocating_at_most
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekd.cli.address import format_address, is_loopback, parse_address
from edgekd.cli.cores import parse_cores
from edgekd.cli.settings import parse, parse_numbers
from edgekd.cli.tls import TlsFiles, read_token
from edgekd.data.datasets import _parse, load_dataset
from edgekd.data.sources import SOURCES
from edgekd.models.build import build_model

in_one_folder = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY_DIGITS = "9" * 5000
ANY_TEXT = st.text(max_size=20) | st.sampled_from([MANY_DIGITS, CONTROL, "", "\u0663", "\u00b2", "-1", "1e3"])

hosts = ANY_TEXT | st.sampled_from(["vm", "[::1]", "[]", "::1", "[::1", "a..b", "a" * 70, ".", "127.0.0.1", "[vm]", "\u00fc.de"])
ports = ANY_TEXT | st.integers().map(str) | st.sampled_from(["50051", "0", "+1", " 1", "1_0"])


@given(text=ANY_TEXT | st.builds("{}:{}".format, hosts, ports), lowest_port=st.integers(0, 1))
@settings(max_examples=300)
def test_any_text_is_an_address_or_refused_by_its_flag(text: str, lowest_port: int) -> None:
    try:
        host, port = parse_address(text, flag="--teacher", lowest_port=lowest_port)
    except ValueError as error:
        assert str(error).startswith("--teacher is ")
        assert str(error).isprintable()
    else:
        assert host
        assert lowest_port <= port <= 65535
        assert parse_address(format_address(host, port), flag="--teacher", lowest_port=lowest_port) == (host, port)
        host.encode("idna")  # what the socket module does with it, and raises no OSError about
        is_loopback(host)


@given(text=ANY_TEXT | st.text("0123456789,-", max_size=12) | st.sampled_from(["0-4095", "0-4096", f"1-{MANY_DIGITS}"]))
@settings(max_examples=300)
def test_any_text_is_a_list_of_cores_or_refused_by_its_flag(text: str) -> None:
    try:
        cores = parse_cores(text)
    except ValueError as error:
        assert str(error).startswith("--cores is ")
    else:
        assert cores
        assert all(0 <= core <= 4095 for core in cores)


@given(text=ANY_TEXT | st.lists(st.builds("{}={}".format, st.sampled_from("ab") | ANY_TEXT, ports)).map(",".join))
@settings(max_examples=200)
def test_any_options_are_numbers_or_refused_by_their_name(text: str) -> None:
    try:
        numbers = parse_numbers("synthetic", text, {"a": None, "b": 7})
    except ValueError as error:
        assert str(error).startswith("synthetic: ")
    else:
        assert numbers.keys() == {"a", "b"}
        assert min(numbers.values()) >= 1


options = st.dictionaries(
    st.sampled_from(["classes", "size", "samples", "channels"]) | st.text(max_size=4),
    st.integers(0, 5) | st.sampled_from([0, -1, 2**18 + 1, 10**10, MANY_DIGITS, "x"]),
).map(lambda found: ",".join(f"{key}={value}" for key, value in found.items()))
synthetic = st.builds("synthetic:{}{}".format, options, st.sampled_from(["", ":public", ":test", ":all", ":"]))


@given(spec=synthetic | st.builds("digits:{}".format, ANY_TEXT))
@settings(max_examples=200)
def test_any_spec_of_a_data_set_is_one_or_refused(spec: str) -> None:
    try:
        with allocating_at_most(16 << 20):
            dataset = load_dataset(spec)
    except ValueError as error:
        assert str(error).startswith(("data set '", "synthetic"))
    else:
        assert len(dataset.inputs) == len(dataset.labels) > 0


@given(spec=ANY_TEXT | st.builds("{}:{}".format, st.sampled_from([*SOURCES, "x"]), ANY_TEXT | hosts))
@settings(max_examples=200)
def test_any_name_of_a_data_set_is_taken_apart_or_refused(spec: str) -> None:
    try:
        name, argument, split = _parse(spec)
    except ValueError as error:
        assert str(error).startswith("data set ")
    else:
        assert name in SOURCES or argument.isidentifier()
        assert split in ("public", "private", "test", "all", "") or split.isidentifier()


folders = st.text(st.characters(exclude_characters="./"), max_size=20)
folders = folders | st.sampled_from(["~nobody-of-that-name", "~nobody-of-that-name/x", "/dev/null", "/dev/null/x", "a\0b"])


@given(spec=st.builds("imagefolder:{}{}".format, folders, st.sampled_from(["", ",size=8"])))
@in_one_folder
def test_a_folder_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=r"imagefolder|no such home folder"):
        load_dataset(spec)


models = st.sampled_from(["cnn", "torchvision", "timm", "os", "builtins", "", ".", "..", "a b", "edgekd"])
names = ANY_TEXT | st.sampled_from(
    ["width=4", "width=0", f"width={MANY_DIGITS}", "width=4,width=5", "path", "print", "int", "__doc__"]
)


@given(spec=ANY_TEXT | st.builds("{}:{}".format, models, names))
@settings(max_examples=150)
def test_any_spec_of_a_model_is_one_or_refused(spec: str) -> None:
    try:
        build_model(spec, num_classes=3, input_shape=(1, 8, 8), seed=0)
    except ValueError as error:
        assert str(error).startswith("model ")


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One field of every kind that the programs have."""

    name: str = "x"
    number: int = 1
    ratio: float = 0.5
    path: Path = Path("here")
    is_on: bool = False
    maybe: int | None = None
    colour: Colour = Colour.RED
    level: Literal["debug", "info"] = "info"
    words: tuple[str, ...] = ()
    either: Path | None = None


KINDS = {"name": str, "number": int, "ratio": float, "path": Path, "is_on": bool, "colour": Colour, "words": tuple}


def parse_or_refuse(argv: list[str]) -> None:
    try:
        found = parse(Config, argv, prog="it", description="")
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(getattr(found, name), kind) for name, kind in KINDS.items())


fields = st.sampled_from([*Config.__dataclass_fields__, "no_is_on", "is-on", "config"])
plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
words = st.builds("--{}{}".format, fields, st.sampled_from(["", "=", "=1", "=--name", "= "])) | plain_text
words = words | st.sampled_from(
    ["-", "--", "-x", "-1", "1", "0x1", "nan", "1e999", MANY_DIGITS, "None", "true", "red", "debug", ""]
)
refused_words = ("-h", "--help", "--tyro-print-completion", "--tyro-write-completion")


@given(argv=st.lists(words.filter(lambda word: word not in refused_words), max_size=4))
@settings(max_examples=100)
def test_any_words_are_settings_or_refused_in_one_line(argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.getbasetemp())
        try:
            parse_or_refuse(argv)
        except OSError as error:
            assert any(word.startswith("--config") for word in argv), error


SPECIAL = ["--name", "--config", "-h", "--help", "--nonsense=1", "", "None", "\0", "\x1b", "\n"]
values = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(SPECIAL)
values = values | st.integers(-3, 3) | st.sampled_from([2**63, 1e300, float("nan"), float("inf"), 0.5]) | st.booleans()
settings_of_any_kind = st.dictionaries(fields, values | st.lists(values, max_size=3) | st.just({}) | st.just([[["x"]]]), max_size=3)


def toml(value: object) -> str:
    """As a TOML value."""
    if isinstance(value, str):
        return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08X}" for c in value) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return "{}" if isinstance(value, dict) else str(value).lower()


@given(found=settings_of_any_kind)
@settings(in_one_folder, max_examples=40)
def test_any_settings_in_a_file_are_read_or_refused_in_one_line(found: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "it.toml"
    file.write_text("".join(f"{key} = {toml(value)}\n" for key, value in found.items()), encoding="utf-8")
    parse_or_refuse(["--config", str(file)])


@given(
    content=st.binary(max_size=40)
    | st.text("[]{}=\"'#\n\\abc1.-T:", max_size=30).map(str.encode)
    | ANY_JSON.map(repr).map(str.encode)
)
@in_one_folder
def test_any_bytes_are_a_settings_file_or_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "it.toml"
    file.write_bytes(content)
    parse_or_refuse(["--config", str(file)])


@pytest.mark.parametrize(
    "content",
    ["name = " + "[" * 100_000, "name = " + "{a = " * 100_000, f"number = {MANY_DIGITS}"],
    ids=["lists", "tables", "digits"],
)
def test_a_settings_file_that_would_break_a_parser_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "it.toml").write_text(content)
    with pytest.raises(ValueError, match=r"it\.toml") as refusal:
        parse(Config, ["--config", str(tmp_path / "it.toml"), "--number", "3"], prog="it", description="")
    assert len(str(refusal.value)) < 1000


@given(
    content=st.binary(max_size=40)
    | st.sampled_from([b"x" * 15, b"x" * 16, b" " * 20 + b"x" * 16 + b"\n", b"x" * 5000, b"x" * 9 + b"\0" * 9])
)
@in_one_folder
def test_any_bytes_are_a_token_or_refused_without_being_shown(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(content)
    try:
        token = read_token(tmp_path / "token")
    except ValueError as error:
        assert str(error).startswith("--token-file ")
        assert len(content) < 3 or content.decode("latin-1") not in str(error)
    else:
        assert 16 <= len(token) <= 4096
        assert token.isascii()
        assert token.isprintable()


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "a\0b", "", "nowhere", "/", "x" * 300])
def test_a_file_of_secrets_that_cannot_be_is_refused_by_its_flag(name: str, tmp_path: Path) -> None:
    path = Path(name) if name.startswith("~") else tmp_path / name
    with pytest.raises(ValueError, match=r"^--token-file "):
        read_token(path)
    with pytest.raises(ValueError, match=r"^--tls-ca "):
        TlsFiles(ca=path).check()
    with pytest.raises(ValueError, match=r"^--tls-cert "):
        TlsFiles(cert=path, key=path).check()


@given(
    content=st.binary(max_size=60)
    | st.binary(max_size=40).map(lambda inner: b"-----BEGIN CERTIFICATE-----\n" + inner + b"\n-----END CERTIFICATE-----\n")
)
@in_one_folder
def test_any_bytes_are_no_certificate(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "it.pem").write_bytes(content)
    with pytest.raises(ValueError, match=r"^--tls-ca "):
        TlsFiles(ca=tmp_path / "it.pem").check()
    with pytest.raises(ValueError, match=r"^--tls-cert "):
        TlsFiles(cert=tmp_path / "it.pem", key=tmp_path / "it.pem").check()
