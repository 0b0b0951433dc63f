"""Pretraining runs: they learn, resume bit for bit wherever they were stopped, and report errors."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ultrafastbert import ops
from ultrafastbert.pretraining import trainer
from ultrafastbert.pretraining.data.packed import compute_fingerprint
from ultrafastbert.pretraining.flops import training_flops
from ultrafastbert.pretraining.in_flight import StepsInFlight
from ultrafastbert.pretraining.step import TrainingStep
from ultrafastbert.pretraining.trainer import Trainer, pretrain
from ultrafastbert.runs import backend, precision
from ultrafastbert.runs.interrupts import Interrupt
from ultrafastbert.runs.reporter import read_metrics
from ultrafastbert.utils import hardware, progress
from ultrafastbert.utils.errors import Interrupted, UserError
from ultrafastbert.utils.hardware import processor

ROOT = Path(__file__).parents[2]


def weights(final):
    return load_file(Path(final) / "model.safetensors")


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_a_run_learns_and_writes_all_its_files(make_arguments, tmp_path):
    arguments = make_arguments(
        max_steps=150, lr=1e-2, batch_ramp=0.3, log_every=10, eval_every=50, checkpoint_every=40
    )
    final = pretrain(arguments)
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    evaluations = [line for line in metrics if "validation_loss" in line]
    steps = [line for line in metrics if "loss" in line]
    assert [line["step"] for line in evaluations] == [50, 100, 150]
    entropy = trainer.prepare(arguments.data).unigram_entropy
    assert evaluations[-1]["validation_loss"] < entropy - 0.7
    assert evaluations[-1]["validation_accuracy"] > 0.15  # chance: 1/55
    assert len(evaluations[-1]["leaf_entropy"]) == 2
    assert steps[0]["batch_size"] == 4 and steps[-1]["batch_size"] == 16
    assert max(line["lr"] for line in steps) == pytest.approx(1e-2, rel=0.2) and steps[-1]["lr"] < 1e-3
    assert steps[-1]["budget_fraction"] == 1 and steps[-1]["skipped"] == 0
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-120", "step-150"]
    assert (tmp_path / "run" / "plots" / "loss.png").exists()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in final.iterdir()}


def test_the_written_config_repeats_the_run(make_arguments, packed_directory, tmp_path):
    first = pretrain(make_arguments())
    config = tmp_path / "run" / "config.yaml"
    assert (
        "data:" in config.read_text() and f"fingerprint {compute_fingerprint(packed_directory)}" in config.read_text()
    )
    command = [
        sys.executable,
        str(ROOT / "train_mlm.py"),
        "--config",
        str(config),
        "--output_dir",
        str(tmp_path / "b"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert_same_weights(first, tmp_path / "b" / "final")


def test_a_new_process_fills_masks_with_the_result(make_arguments):
    final = pretrain(make_arguments())
    code = (
        "import sys, ultrafastbert\n"
        "from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline\n"
        "model = AutoModelForMaskedLM.from_pretrained(sys.argv[1])\n"
        "assert type(model).__name__ == 'UltraFastBertForMaskedLM'\n"
        "assert AutoTokenizer.from_pretrained(sys.argv[1]).mask_token == '[MASK]'\n"
        "print(len(pipeline('fill-mask', sys.argv[1])('w1 w2 [MASK] w4')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(final)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "5"


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize(
    "options",
    [
        {"fff": "1x5"},
        {"fff": "dense-32"},
        {"fff": "none"},
        {"fff": "1x3x4", "grow_at": 0.3},
        {"fff": "1x5", "optimizer": "muon", "mask_probability": 0.3, "final_mask_probability": 0.1},
        {"fff": "dense-32", "optimizer": "muon", "precision": "bf16"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_by_a_signal_resumes_bit_for_bit(make_arguments, tmp_path, monkeypatch, options, number):
    expected = pretrain(make_arguments(**options, output_dir=tmp_path / "whole"))

    handler = signal.getsignal(number)
    send_signal(monkeypatch, number)
    with pytest.raises(Interrupted, match="saved in .*step-") as stop:
        pretrain(make_arguments(**options))
    assert stop.value.exit_code == 128 + number and signal.getsignal(number) is handler
    monkeypatch.undo()
    assert not (tmp_path / "run" / "final").exists()
    final = pretrain(make_arguments(**options))
    assert_same_weights(expected, final)
    assert_same_metrics(tmp_path / "whole", tmp_path / "run")


def send_signal(monkeypatch, number):
    """Sends a signal to this process at the 14th micro-batch, which is not the first of its step."""
    loss, calls = TrainingStep.loss, []

    def interrupt(self, batch):
        calls.append(batch)
        if len(calls) == 14:
            os.kill(os.getpid(), number)
        return loss(self, batch)

    monkeypatch.setattr(TrainingStep, "loss", interrupt)


def assert_same_metrics(first, second):
    def lines(run):
        measured = ("seconds", "tokens_per_second", "loss")  # loss: a mean over the steps since the run resumed
        return [
            {name: value for name, value in line.items() if name not in measured}
            for line in read_metrics(run / "metrics.jsonl")
        ]

    assert lines(first) == lines(second)


def test_a_run_with_dropout_resumes_bit_for_bit(make_arguments, tmp_path):
    def arguments(**changes):
        arguments = make_arguments(**changes)
        arguments.model.dropout = 0.3
        return arguments

    expected = pretrain(arguments(output_dir=tmp_path / "whole"))
    pretrain(arguments(output_dir=tmp_path / "part", checkpoint_every=5, keep_checkpoints=9))
    final = pretrain(arguments(resume=str(tmp_path / "part" / "checkpoints" / "step-5")))
    assert_same_weights(expected, final)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(make_arguments, tmp_path):
    """SIGKILL at several moments, also while a checkpoint is written."""
    expected = pretrain(make_arguments(output_dir=tmp_path / "whole", checkpoint_every=2))
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import os, signal, sys\n"
        "from accelerate import Accelerator\n"
        "from ultrafastbert.cli import main\n"
        "from ultrafastbert.pretraining.trainer import Trainer\n"
        "kind, count = os.environ['KILL'].split(':')\n"
        "owner, name = {'step': (Trainer, '_launch_step'), 'save': (Accelerator, 'save_state')}[kind]\n"
        "original, calls = getattr(owner, name), []\n"
        "def wrapped(*arguments, **keywords):\n"
        "    calls.append(1)\n"
        "    result = original(*arguments, **keywords)\n"
        "    if len(calls) == int(count):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return result\n"
        "setattr(owner, name, wrapped)\n"
        "main('pretrain')\n"
    )
    (tmp_path / "run").mkdir()
    arguments = make_arguments(checkpoint_every=2).to_dict()
    (tmp_path / "arguments.yaml").write_text(json.dumps(arguments))  # JSON is YAML
    # killed before the first checkpoint, after a step, while writing a checkpoint (twice), while writing the last
    for kill in ("step:1", "step:3", "save:1", "save:2", "save:4"):
        environment = os.environ | {"KILL": kill}
        command = [sys.executable, str(driver), "--config", str(tmp_path / "arguments.yaml")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "run" / "final").exists()
    assert_same_weights(expected, pretrain(make_arguments(checkpoint_every=2)))
    assert_same_metrics(tmp_path / "whole", tmp_path / "run")


def test_a_finished_run_is_not_repeated_and_a_larger_budget_resumes_it(make_arguments, tmp_path, capsys):
    pretrain(make_arguments())
    before = (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns
    pretrain(make_arguments())
    assert (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns == before
    capsys.readouterr()
    pretrain(make_arguments(max_steps=14))
    said = capsys.readouterr().out
    assert "changed since the checkpoint: train.max_steps was 12 and is 14" in said and "resuming at step 12" in said
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 14


def test_budgets_of_tokens_and_hours_end_a_run(make_arguments, tmp_path, monkeypatch):
    pretrain(make_arguments(max_steps=None, max_tokens=5 * 16 * 32, batch_ramp=0, output_dir=tmp_path / "tokens"))
    assert read_metrics(tmp_path / "tokens" / "metrics.jsonl")[-1]["step"] == 5

    clock = iter(range(0, 10**6, 20))  # every reading of the clock is 20 seconds later
    monkeypatch.setattr(trainer.time, "monotonic", lambda: next(clock))
    pretrain(make_arguments(max_steps=None, budget_hours=0.2, eval_every=99, output_dir=tmp_path / "hours"))
    last = read_metrics(tmp_path / "hours" / "metrics.jsonl")[-1]
    assert last["budget_fraction"] == 1 and 720 <= last["seconds"] < 900


def break_loss(monkeypatch, broken):
    """The loss is infinite in the steps of `broken`."""
    launch, original, step = Trainer._launch_step, TrainingStep.loss, [0]

    def launch_step(self, *arguments):
        step[0] = self.progress.step
        return launch(self, *arguments)

    def loss(self, batch):
        return original(self, batch) * (float("inf") if step[0] in broken else 1)

    monkeypatch.setattr(Trainer, "_launch_step", launch_step)
    monkeypatch.setattr(TrainingStep, "loss", loss)


def test_steps_that_are_not_finite_are_skipped_and_counted(make_arguments, tmp_path, monkeypatch, capsys):
    break_loss(monkeypatch, {3, 4, 9})
    final = pretrain(make_arguments(log_every=1))
    assert all(tensor.isfinite().all() for tensor in weights(final).values())
    skipped = [line["skipped"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "skipped" in line]
    assert skipped == [0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3, 3]
    said = capsys.readouterr().out
    assert "step 5 skipped: loss inf, gradient norm nan (2 in a row, 2 in all)" in said and "3 steps skipped" in said


def test_a_loss_that_stays_infinite_stops_the_run_and_names_the_last_checkpoint(make_arguments, tmp_path, monkeypatch):
    break_loss(monkeypatch, range(6, 99))
    with pytest.raises(UserError, match=r"3 steps in a row .* last good checkpoint: .*checkpoints/step-(4|8)\."):
        pretrain(make_arguments(max_skipped_steps=3))
    checkpoint = max((tmp_path / "run" / "checkpoints").iterdir())
    assert all(tensor.isfinite().all() for tensor in weights(checkpoint).values())


def test_reading_steps_late_changes_nothing(make_arguments, tmp_path, monkeypatch, capsys):
    """As on a GPU, where a step is read while the next one runs."""
    break_loss(monkeypatch, {2, 3, 9})
    pretrain(make_arguments(log_every=1, output_dir=tmp_path / "whole"))
    monkeypatch.setattr(trainer, "StepsInFlight", lambda max_unread: StepsInFlight(max_unread=1))
    loss = TrainingStep.loss
    send_signal(monkeypatch, signal.SIGTERM)
    with pytest.raises(Interrupted):
        pretrain(make_arguments(log_every=1))
    monkeypatch.setattr(TrainingStep, "loss", loss)
    capsys.readouterr()
    final = pretrain(make_arguments(log_every=1))
    assert_same_weights(tmp_path / "whole" / "final", final)
    assert_same_metrics(tmp_path / "whole", tmp_path / "run")
    assert "3 steps skipped" in capsys.readouterr().out


def test_mfu_is_reported_where_the_peak_is_known(make_arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(hardware, "PEAKS", {processor(): hardware.Peak(1.0, {torch.float32: 1e9})})
    pretrain(make_arguments())
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    config = trainer.UltraFastBertConfig.from_pretrained(tmp_path / "run" / "final")
    flops_a_token = training_flops(config, sequences=1, sequence_length=32, masked=8) / 32
    for line in lines:
        assert line["mfu"] == pytest.approx(flops_a_token * line["tokens_per_second"] / 1e9)
    assert "% MFU" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(make_arguments, tmp_path, monkeypatch, capsys):
    save = trainer.Accelerator.save_state
    failures = iter([True, False, False])

    def save_state(self, directory):
        if next(failures):
            raise OSError(28, "No space left on device")
        return save(self, directory)

    monkeypatch.setattr(trainer.Accelerator, "save_state", save_state)
    pretrain(make_arguments())
    said = capsys.readouterr().out
    assert "warning: checkpoint" in said and "step-4 could not be written: [Errno 28]" in said
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-12", "step-8"]


def test_trackers_get_settings_and_metrics(make_arguments, tmp_path):
    pretrain(make_arguments(trackers=["tensorboard"]))
    events = EventAccumulator(str(next((tmp_path / "run").rglob("events.out.tfevents.*")).parent)).Reload()
    tags = events.Tags()["scalars"]
    assert {"loss", "validation_loss", "lr", "tokens_per_second", "leaf_entropy/layer_1"} <= set(tags)
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("name, message", [("wandb", "packages installed"), ("abacus", "abacus")])
def test_trackers_that_cannot_be_used_are_refused(make_arguments, monkeypatch, name, message):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=message):
        pretrain(make_arguments(trackers=[name]))


def test_a_model_of_another_step_is_not_taken_for_the_result(make_arguments, tmp_path):
    pretrain(make_arguments(keep_checkpoints=9))
    step_8 = tmp_path / "run" / "checkpoints" / "step-8"
    pretrain(make_arguments(resume=str(step_8), max_steps=8))
    assert json.loads((tmp_path / "run" / "final" / "pretraining.json").read_text())["step"] == 8
    assert_same_weights(step_8, tmp_path / "run" / "final")


@pytest.mark.parametrize("resume", ["never", "checkpoints/step-4"])
def test_nothing_is_moved_for_a_run_that_cannot_start(make_arguments, tmp_path, resume):
    pretrain(make_arguments(keep_checkpoints=9))
    before = sorted(path for path in (tmp_path / "run").rglob("*"))
    arguments = make_arguments(resume=resume.replace("checkpoints", str(tmp_path / "run" / "checkpoints")))
    arguments.model.num_attention_heads = 3
    with pytest.raises(UserError):
        pretrain(arguments)
    assert sorted(path for path in (tmp_path / "run").rglob("*")) == before


def test_a_model_that_is_too_large_is_refused_before_it_is_built(make_arguments):
    with pytest.raises(UserError, match="model: a model of this configuration needs .* GB of memory"):
        pretrain(make_arguments(fff="99x29"))


def test_training_that_needs_more_memory_than_there_is_is_refused(make_arguments, monkeypatch):
    """Weights, gradients and the optimiser's averages; the weights alone would fit."""
    monkeypatch.setattr(trainer, "memory_size", lambda: 10_000)
    with pytest.raises(UserError, match="training 0 million parameters needs at least .* cpu has 0.0 GB"):
        pretrain(make_arguments())


def test_a_disk_that_is_too_small_is_refused_before_training(make_arguments, monkeypatch):
    free = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(UserError, match="has 0.00 GB free"):
        pretrain(make_arguments())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fff": "1x2"}, "model.fff was '2x3' and is '1x2'"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"optimizer": "muon"}, "train.optimizer was 'adamw' and is 'muon'"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(make_arguments, change, message):
    pretrain(make_arguments())
    with pytest.raises(UserError, match=message):
        pretrain(make_arguments(**change))


def test_sizes_that_do_not_fit_are_named(make_arguments):
    arguments = make_arguments()
    arguments.model.num_attention_heads = 3
    with pytest.raises(UserError, match=r"hidden_size is 16; it should be a multiple of num_attention_heads \(3\)"):
        pretrain(arguments)


def test_a_checkpoint_of_other_data_is_refused(make_arguments, packed_directory, tmp_path):
    pretrain(make_arguments())
    arguments = make_arguments(max_steps=20)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copytree(packed_directory, other, dirs_exist_ok=True)
    ids = np.fromfile(other / "train.bin", "<u2")
    ids[::-1].tofile(other / "train.bin")
    manifest = json.loads((other / "manifest.json").read_text())
    before, now = manifest["fingerprint"], compute_fingerprint(other)
    (other / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": now}))
    arguments.data.source = str(other)
    with pytest.raises(UserError, match=f"data_fingerprint was '{before}' and is '{now}'"):
        pretrain(arguments)


def test_compiled_training_agrees_with_eager(make_arguments, tmp_path, monkeypatch):
    model_compile = torch.nn.Module.compile
    compiled = []

    def compile(self, **options):
        compiled.append(self)
        model_compile(self, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    eager = weights(pretrain(make_arguments(output_dir=tmp_path / "eager", compile=False)))
    graph = weights(pretrain(make_arguments(output_dir=tmp_path / "graph", compile=True)))
    assert len(compiled) == 1 and eager.keys() == graph.keys()
    for name, tensor in eager.items():
        torch.testing.assert_close(graph[name], tensor, rtol=1e-3, atol=1e-4)


def test_bf16_trains_in_bf16_and_keeps_float32_weights(make_arguments, tmp_path, monkeypatch):
    seen, original = [], torch.nn.Linear.forward

    def forward(self, x):
        output = original(self, x)
        seen.append(output.dtype)
        return output

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    final = pretrain(make_arguments(precision="bf16", max_steps=2))
    assert set(seen) == {torch.bfloat16}
    assert all(tensor.dtype == torch.float32 for tensor in weights(final).values())


def test_a_resumed_run_keeps_the_precision_that_was_chosen(make_arguments, monkeypatch):
    for faster, steps in ((True, 4), (False, 8)):
        monkeypatch.setattr(precision, "_cpu_is_faster_in_bf16", lambda width, faster=faster: faster)
        final = pretrain(make_arguments(precision="auto", max_steps=steps))
        assert json.loads((final / "pretraining.json").read_text())["in_bf16"] is True
    final = pretrain(make_arguments(precision="fp32", max_steps=12))  # but the option decides if it is given
    assert json.loads((final / "pretraining.json").read_text())["in_bf16"] is False


def test_a_resumed_run_keeps_the_backends_that_were_measured(make_arguments, monkeypatch, capsys):
    size, used = "1x3", []
    evaluate = ops.fff
    monkeypatch.setattr(backend, "is_measured", lambda device: True)
    monkeypatch.setattr(ops, "fff", lambda *tensors, backend: used.append(backend) or evaluate(*tensors, backend))
    for times, steps in (({"dense": 3e-3, "gather": 2e-3}, 2), ({"dense": 1e-3, "gather": 2e-3}, 4)):
        monkeypatch.setattr(backend, "measure_backends", lambda *options, times=times: {size: times})
        final = pretrain(make_arguments(size, max_steps=steps, checkpoint_every=2))
        assert json.loads((final / "pretraining.json").read_text())["backends"] == {size: "gather"}
    assert set(used) == {"gather"}
    output = capsys.readouterr().out
    assert f"trees of {size}: backend gather (dense 3 ms, gather 2 ms)" in output
    assert f"trees of {size}: backend gather (as before)" in output


def launch(tmp_path, processes, arguments, *options):
    """Starts `train_mlm.py` in several processes under torchrun."""
    file = tmp_path / "arguments.yaml"
    file.write_text(json.dumps(arguments.to_dict()))
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    torchrun += options or ["--standalone"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*torchrun, str(ROOT / "train_mlm.py"), "--config", str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process):
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return output


@pytest.fixture
def as_one(make_arguments, tmp_path):
    """Checks a run of several processes against one process: the same sequences in the same steps, so the same
    weights up to the order of sums. AdamW's epsilon is so large that it does not enlarge rounding errors."""
    options = {"batch_size": 12, "batch_ramp": 0, "lr": 0.03, "eps": 1e-3, "eval_every": 4}
    whole = weights(pretrain(make_arguments(output_dir=tmp_path / "one", micro_batch_size=12, **options)))

    def compare(run):
        lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", run)]
        tokens = [[line["tokens"] for line in metrics] for metrics in lines]
        assert tokens[1] == tokens[0][-len(tokens[1]) :]  # a run that starts from a checkpoint has the last ones
        losses = [[line.get("validation_loss", 0) for line in metrics] for metrics in lines]
        assert losses[1] == pytest.approx(losses[0][-len(losses[1]) :], abs=1e-4)
        for name, tensor in weights(tmp_path / run / "final").items():
            torch.testing.assert_close(tensor, whole[name], atol=1e-4, rtol=1e-3, msg=name)

    return options, compare


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_train_as_one(make_arguments, tmp_path, as_one, processes):
    options, compare = as_one
    arguments = make_arguments(output_dir=tmp_path / "several", micro_batch_size=12 // processes, **options)
    assert f"{processes} processes" in finish(launch(tmp_path, processes, arguments))
    compare("several")


@pytest.mark.slow
def test_two_machines_train_as_one(make_arguments, tmp_path, as_one):
    """Each has a torchrun of its own; the second one starts later, and the first one waits for it."""
    options, compare = as_one
    arguments = make_arguments(output_dir=tmp_path / "machines", micro_batch_size=6, **options)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"--rdzv_endpoint=127.0.0.1:{free.getsockname()[1]}"
    rendezvous = ["--nnodes=2", "--rdzv_backend=c10d", "--rdzv_id=test", endpoint]
    first = launch(tmp_path, 1, arguments, *rendezvous, "--rdzv_conf=is_host=1")
    time.sleep(1)
    second = launch(tmp_path, 1, arguments, *rendezvous, "--rdzv_conf=is_host=0")
    outputs = [finish(first), finish(second)]
    assert sum("2 processes" in output for output in outputs) == 1  # the first process alone prints
    compare("machines")


@pytest.mark.slow
def test_a_run_resumes_in_another_number_of_processes(make_arguments, tmp_path, as_one):
    """Three processes, from step 4 on two, and from step 8 on one."""
    options, compare = as_one
    options |= {"keep_checkpoints": 9}
    first = make_arguments(output_dir=tmp_path / "three", micro_batch_size=4, **options)
    finish(launch(tmp_path, 3, first))
    checkpoint = tmp_path / "three/checkpoints/step-4"
    second = make_arguments(output_dir=tmp_path / "two", micro_batch_size=6, resume=str(checkpoint), **options)
    assert "resuming at step 4" in finish(launch(tmp_path, 2, second))
    checkpoint = tmp_path / "two/checkpoints/step-8"
    pretrain(make_arguments(output_dir=tmp_path / "last", micro_batch_size=12, resume=str(checkpoint), **options))
    for run in ("three", "two", "last"):
        compare(run)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_run_resumes(make_arguments, tmp_path):
    arguments = make_arguments(max_steps=600, checkpoint_every=20, log_every=20, eval_every=600)
    job, checkpoints = launch(tmp_path, 2, arguments), tmp_path / "run" / "checkpoints"
    while not (checkpoints.exists() and any(checkpoints.glob("step-*"))):
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.01)
    workers = psutil.Process(job.pid).children()
    next(worker for worker in workers if worker.environ()["RANK"] == "1").kill()
    _, error = job.communicate(timeout=120)
    assert job.returncode == 1 and "local_rank: 1" in error and "-9" in error
    assert not any(worker.is_running() for worker in workers)
    assert "resuming at step" in finish(launch(tmp_path, 2, arguments))
    metrics = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in metrics] == list(range(20, 601, 20))


@pytest.mark.parametrize("other", [0, signal.SIGINT])
def test_a_signal_while_processes_agree_is_not_lost(other):
    """It arrives while a process waits for the others, one of which may have another signal."""
    interrupt = Interrupt()

    def gather(number):
        if not waited:
            interrupt.signal = signal.SIGTERM
        waited.append(number.item())
        return torch.stack([number, torch.tensor(0 if len(waited) > 1 else other)])

    waited = []
    run = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2, device="cpu", gather=gather))
    assert Trainer._is_interrupted(run, interrupt, first=True) == bool(other)
    assert interrupt.signal == (other or signal.SIGTERM)
    assert not Trainer._is_interrupted(run, interrupt, first=False)
    assert Trainer._is_interrupted(run, interrupt, first=True) and waited == [0, other or signal.SIGTERM]


@pytest.mark.slow
def test_several_processes_stop_after_a_signal(make_arguments, tmp_path):
    arguments = make_arguments(max_steps=100_000, checkpoint_every=100_000, log_every=5, eval_every=100_000)
    job, metrics = launch(tmp_path, 2, arguments), tmp_path / "run" / "metrics.jsonl"
    while not read_metrics(metrics):
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    _, error = job.communicate(timeout=60)
    assert "stopped by signal 15 after step" in error and "forcefully" not in error
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.name in error


def test_command_line_prints_errors_without_a_traceback(tmp_path):
    def run(*argv):
        command = [sys.executable, str(ROOT / "train_mlm.py"), "--train.max_steps", "2", *argv]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stderr

    (tmp_path / "file").write_text("")
    code, error = run("--output_dir", str(tmp_path / "file" / "run"))
    assert code == 1 and "output_dir" in error and "file/run" in error
    code, error = run("--output_dir", str(tmp_path / "run"), "--data.source", str(tmp_path / "missing.txt"))
    assert code == 1 and "missing.txt" in error


def test_a_terminated_command_exits_with_143(make_arguments, tmp_path):
    arguments = make_arguments(max_steps=100_000, checkpoint_every=100_000).to_dict()
    (tmp_path / "arguments.yaml").write_text(json.dumps(arguments))
    command = [sys.executable, str(ROOT / "train_mlm.py"), "--config", str(tmp_path / "arguments.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not read_metrics(metrics):  # it is training
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143 and "stopped by signal 15" in error and "step-" in error
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
