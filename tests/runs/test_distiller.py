"""The Python interface, in processes of its own: the command line's bits, threads, notebooks, and errors with the same words."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run, student_command, weights

pytestmark = pytest.mark.slow

RICH = {
    "optimizer": "adamw", "lr": 0.003, "weight_decay": 0.02, "schedule": "cosine", "warmup": 4, "clip_grad": 0.5,
    "augment": "crop-flip", "loss": "tests.support.own_recipe:loss",
}  # fmt: skip
ONE_THREAD = {1: ("--torch-threads", "1"), 2: ()}
"""With one team, results do not depend on the cores if it has one thread."""
SMALL = {"private": "digits:private", "private_samples": 64, "batch_size": 8, "public_batch": 16, "seed": 5, "log_level": "info"}


def python(script: str, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script from a file without a main guard, as a user's script may be."""
    return subprocess.run(
        [sys.executable, "-c", script, *args], capture_output=True, text=True, check=False, timeout=150, cwd=cwd or Path.cwd()
    )


def as_flags(settings: dict[str, object]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module", params=[1, 2])
def shards(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def by_flags(address: str, shards: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flags")
    finished = run(student_command(address, out, *as_flags(RICH), "--cycles", "20", "--shards", str(shards), *ONE_THREAD[shards]))
    assert finished.returncode == 0, finished.stderr
    return out


FIT = """
import json, sys, threading
from edge_student import Distiller
address, out, shards, settings = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
def train(name):
    distiller = Distiller("cnn:width=4", teacher=address, out=f"{out}/{name}", shards=shards, **settings)
    results[name] = distiller.fit(cycles=20)
results = {}
train("main")
thread = threading.Thread(target=train, args=("thread",))
thread.start()
thread.join()
assert results["thread"].cycles == 20 and results["thread"].is_valid, results["thread"].notes
print(results["thread"].accuracy)
"""


def test_a_training_in_python_has_the_bits_of_the_command_line_also_in_a_thread_and_twice(
    address: str, shards: int, by_flags: Path, tmp_path: Path
) -> None:
    settings = json.dumps({**SMALL, **RICH, **({"torch_threads": 1} if shards == 1 else {})})
    finished = python(FIT, address, str(tmp_path), str(shards), settings)
    assert finished.returncode == 0, finished.stderr
    assert weights(tmp_path / "main") == weights(tmp_path / "thread") == weights(by_flags)
    assert float(finished.stdout) == json.loads((by_flags / "result.json").read_text())["accuracy"]


OWN = """
import sys, torch
from edge_student import Distiller, load_student
from edgekd.data.datasets import load_dataset
digits = {split: load_dataset(f"digits:{split}") for split in ("private", "public", "test")}
class Pairs(torch.utils.data.Dataset):
    def __init__(self, split):
        self.data = digits[split]
    def __len__(self):
        return len(self.data.labels)
    def __getitem__(self, index):
        return torch.from_numpy(self.data.inputs[index]), int(self.data.labels[index])
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)
    def forward(self, inputs):
        return self.layer(inputs.flatten(1))
def loss(private, labels, public, teacher):
    return torch.nn.functional.cross_entropy(private, labels) + torch.nn.functional.mse_loss(public, teacher)
def darker(samples, random):
    return samples // 2
seen = []
for name in "ab":
    torch.manual_seed(0)
    student = Net()
    distiller = Distiller(
        student, private=Pairs("private"), public=Pairs("public"), test=Pairs("test"), teacher=sys.argv[1],
        out=f"{sys.argv[2]}/{name}", loss=loss, augment=darker, callbacks=[seen.append], shards=int(sys.argv[3]),
        torch_threads=1 if sys.argv[3] == "1" else None, batch_size=8, public_batch=16, eval_every=10,
    )
    result = distiller.fit(cycles=20)
    assert result.details["shards"] == int(sys.argv[3]), result.notes
    assert result.accuracy is not None
    reloaded = load_student(f"{sys.argv[2]}/{name}/student.safetensors", model=Net())
    samples = torch.from_numpy(digits["test"].inputs[:5])
    assert torch.equal(reloaded(samples), student(samples.float().div(127.5).sub(1)))
assert {record["cycle"] for record in seen} >= {10, 20}, seen
print(seen[-1]["accuracy"])
"""


def test_objects_of_a_script_reach_the_compute_workers(address: str, shards: int, tmp_path: Path) -> None:
    finished = python(OWN, address, str(tmp_path), str(shards))
    assert finished.returncode == 0, finished.stderr
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_a_script_without_a_main_guard_is_not_run_again_in_the_workers(address: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(OWN)
    finished = run([sys.executable, str(script), address, str(tmp_path), "2"])
    assert finished.returncode == 0, finished.stderr
    assert len(finished.stdout.splitlines()) == 1


def test_a_cell_of_a_notebook_trains_each_time_it_runs(address: str, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    cell = OWN.replace("sys.argv[1]", repr(address)).replace("sys.argv[2]", repr(str(tmp_path))).replace("sys.argv[3]", "2")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell), nbformat.v4.new_code_cell(cell)])
    nbclient.NotebookClient(notebook, timeout=150, kernel_name="python3").execute()
    texts = [
        "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout") for cell in notebook.cells
    ]
    assert texts[0] == texts[1] != ""


KILLED = """
import json, os, signal, sys
from edge_student import Distiller
address, out, resume = sys.argv[1], sys.argv[2], sys.argv[3] == "resume"
def kill(metrics):
    if not resume and metrics["cycle"] >= 10:
        os.kill(os.getpid(), int(sys.argv[4]))
settings = {"callbacks": [kill], "eval_every": 5, "checkpoint_every": 0.001, **json.loads(sys.argv[5])}
print(Distiller("cnn:width=4", teacher=address, out=out, **settings).fit(cycles=20, resume=resume).cycles)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_training_resumes_with_the_same_bits(
    number: signal.Signals, address: str, shards: int, by_flags: Path, tmp_path: Path
) -> None:
    settings = json.dumps({**SMALL, **RICH, "shards": shards, **({"torch_threads": 1} if shards == 1 else {})})
    killed = python(KILLED, address, str(tmp_path), "new", str(int(number)), settings)
    assert killed.returncode != 0
    assert number == signal.SIGKILL or "KeyboardInterrupt" in killed.stderr
    resumed = python(KILLED, address, str(tmp_path), "resume", str(int(number)), settings)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.strip() == "20"
    assert weights(tmp_path) == weights(by_flags)


MISTAKES = """
import sys, torch
from edge_student import Distiller
for settings in (
    {"lr": -1.0}, {"learning_rate": 1}, {"policy": "fastest"}, {"optimizer": "sdg"},
    {"public": "local", "private": [(torch.zeros(3), 1)]},
):
    try:
        Distiller("cnn", **{"private": "digits:private", "teacher": sys.argv[1], "out": sys.argv[2], **settings}).fit(cycles=1)
    except ValueError as error:
        print(error)
    else:
        raise SystemExit(f"no error for {settings}")
"""


def test_errors_have_the_words_of_the_command_line(address: str, tmp_path: Path) -> None:
    finished = python(MISTAKES, address, str(tmp_path))
    assert finished.returncode == 0, finished.stderr + finished.stdout
    lines = finished.stdout.splitlines()
    assert lines[0] == "--lr is -1.0, must be above 0 and finite"
    assert lines[1].startswith("unknown setting learning_rate")
    assert "fastest" in lines[2]
    assert "--optimizer" in lines[3]
    assert lines[4].startswith('public is "local", but private is a data set of your own')


def test_importing_the_package_does_not_load_torch() -> None:
    script = "import sys, edge_student; print('torch' in sys.modules, sorted(edge_student.__all__))"
    assert python(script).stdout.strip() == "False ['Distiller', 'load_student']"


def test_cores_and_signal_handlers_are_given_back(address: str, tmp_path: Path) -> None:
    script = """
import os, signal, sys, threading, time, torch
from edge_student import Distiller
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
def state():
    masks = [os.sched_getaffinity(int(tid)) for tid in os.listdir("/proc/self/task")]
    return set(map(frozenset, masks)), signal.getsignal(signal.SIGINT), torch.get_num_threads(), os.environ.get("GOMP_SPINCOUNT")
torch.set_num_threads(2)
before = state()
settings = {"private": "digits:private", "teacher": sys.argv[1], "out": sys.argv[2], "cores": str(min(os.sched_getaffinity(0)))}
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Linear(8, 10))
for shards in (1, 2):
    Distiller(model, shards=shards, torch_threads=1 if shards == 1 else None, freeze="1", **settings).fit(cycles=3)
    assert state() == before, (state(), before)
    assert all(parameter.requires_grad for parameter in model.parameters())
"""
    finished = python(script, address, str(tmp_path))
    assert finished.returncode == 0, finished.stderr


def test_a_finished_training_is_loaded_when_it_resumes(address: str, tmp_path: Path) -> None:
    script = """
import sys, torch
from edge_student import Distiller
def make():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
settings = {"private": "digits:private", "teacher": sys.argv[1], "out": sys.argv[2], "shards": 1}
trained, again = make(), make()
Distiller(trained, **settings).fit(cycles=5)
assert Distiller(again, **settings).fit(cycles=5, resume=True).cycles == 5
assert torch.equal(trained[1].weight, again[1].weight)
before = again[1].weight.clone()
assert Distiller(again, **settings).fit(cycles=5).cycles == 5
assert not torch.equal(before, again[1].weight)
"""
    finished = python(script, address, str(tmp_path))
    assert finished.returncode == 0, finished.stderr


LOOP = """
import sys, torch
from edge_student.logit_stream import LogitStream
def stream(**settings):
    settings = {"public_batch": 16, "encoding": "int8", **settings}
    return LogitStream(teacher=sys.argv[1], public="digits:public", cycles=6, **settings)
with stream() as batches:
    for batch in batches:  # left early
        with batch.forward() as inputs:
            assert inputs.shape == (16, 1, 8, 8) and inputs.dtype == torch.uint8
        with batch.backward() as teacher:
            assert teacher.shape == (16, 10) and teacher.dtype == torch.float32
        if batch.index == 2:
            break
    try:
        next(iter(batches))
    except ValueError as error:
        print(error)
try:
    with stream() as batches:
        for batch in batches:
            with batch.forward():
                pass
except ValueError as error:
    print(error)
for wrong in ({"lr": 1.0}, {"encoding": "int9"}, {"public_inputs": "stream"}):
    try:
        stream(**wrong)
    except ValueError as error:
        print(error)
with stream() as batches:
    kept = iter(batches)
    batch = next(kept)
    for task in (batch.backward, batch.forward, batch.forward):
        try:
            with task():
                pass
        except ValueError as error:
            print(error)
try:
    with batch.backward():
        pass
except ValueError as error:
    print(error)
with stream():
    print("ended")
"""


def test_a_loop_of_the_user_may_end_early_and_errors_are_explained(address: str) -> None:
    finished = python(LOOP, address)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == [
        "a LogitStream gives its batches once, within a `with` block: make another one",
        "batch 0 was not used within `forward()` and then `backward()`",
        "unknown setting lr",
        "--encoding is 'int9', must be 'float32', 'float16', 'int8', 'topk'",
        "--public is digits:public, but with --public-inputs stream the teacher sends its own; omit one of them",
        *["batch 0: use `forward()` once, then `backward()` once, within the stream's block"] * 3,
        "ended",
    ]
