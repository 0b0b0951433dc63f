"""A model on the Hub computes the same where the package is not installed; its card states what is recorded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.export.helpers import ARCHITECTURES, batch, first_outputs, make, run_without_the_package, save
from ultrafastbert import AUTO_CLASSES
from ultrafastbert.cli import main
from ultrafastbert.export import card, travelling
from ultrafastbert.export.loading import HEADS, load_model
from ultrafastbert.utils.errors import UserError

AUTO = {model_class.__name__: auto_class.__name__ for auto_class, model_class in AUTO_CLASSES.items()}
KINDS = [("UltraFastBertModel", kind) for kind in ARCHITECTURES] + [
    (head, "tree") for head in HEADS if head != "UltraFastBertModel"
]


def export(source, destination, *options):
    main(argv=["export", "hub", "--model", str(source), "--output_dir", str(destination), *options])
    return destination


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(card, "SECONDS", 0)


LOAD_AND_RUN = """
import json, warnings, torch, transformers
inputs = torch.load("inputs.pt")
models = {}
for name, auto in json.loads(sys.argv[1]).items():
    models[name] = getattr(transformers, auto).from_pretrained(f"out/{name}", trust_remote_code=True).eval()
outputs = {}
with warnings.catch_warnings(record=True) as caught, torch.no_grad():
    warnings.simplefilter("always")
    for name, model in models.items():
        outputs[name] = [t for t in model(**inputs[name]).to_tuple() if isinstance(t, torch.Tensor)]
torch.save(outputs, "outputs.pt")
print([str(w.message) for w in caught if "ultrafastbert" in str(w.message)])
"""


def test_all_kinds_compute_the_same_without_the_package(tmp_path):
    models, autos, inputs = {}, {}, {}
    for head, kind in KINDS:
        name = f"{head}-{kind}"
        models[name], autos[name] = make(head, **ARCHITECTURES[kind]), AUTO[head]
        inputs[name] = batch(models[name])
        export(save(models[name], tmp_path / "in" / name), tmp_path / "out" / name)
    torch.save(inputs, tmp_path / "inputs.pt")
    done = run_without_the_package(LOAD_AND_RUN, tmp_path, json.dumps(autos))
    assert done.returncode == 0, done.stderr
    outputs = torch.load(tmp_path / "outputs.pt")
    for name, model in models.items():
        with torch.no_grad():
            expected = first_outputs(model(**inputs[name]))
        assert all(output.isfinite().all() and output.std() > 0.01 for output in expected)
        torch.testing.assert_close(outputs[name], expected, msg=lambda text, name=name: f"{name}: {text}")


SAVE_AGAIN = """
import warnings, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
warnings.simplefilter("always")
model = AutoModelForMaskedLM.from_pretrained("out", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("out", trust_remote_code=True)
model(torch.ones(1, 3, dtype=torch.long), labels=torch.ones(1, 3, dtype=torch.long)).loss.backward()
model.save_pretrained("again")
again = AutoModelForMaskedLM.from_pretrained("again", trust_remote_code=True)
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
print(len(pipeline("fill-mask", model=again, tokenizer=tokenizer)("the cat sat on the [MASK]")))
"""


def test_it_trains_saves_itself_with_its_code_and_asks_once_for_the_package(tmp_path):
    export(save(make("UltraFastBertForMaskedLM", fff_depth=9), tmp_path / "in"), tmp_path / "out")
    done = run_without_the_package(SAVE_AGAIN, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5"]
    for hint in ("the package ultrafastbert is not installed", "pip install ultrafastbert"):
        assert done.stderr.count(hint) == 2  # once for each of the two copies of the code
    assert (tmp_path / "again" / "ops_gather.py").is_file()
    assert not (tmp_path / "again" / "requires_ultrafastbert.py").exists()


def test_the_package_itself_loads_an_export_and_saves_it_as_its_own(tmp_path):
    model = make("UltraFastBertForSequenceClassification")
    out = export(save(model, tmp_path / "in"), tmp_path / "out")
    loaded = load_model(out)
    assert type(loaded) is type(model)  # and not the class of the code beside it
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "requires_ultrafastbert.UltraFastBertConfig"
    }
    torch.testing.assert_close(load_model(tmp_path / "again").state_dict(), model.state_dict())


# a model that is not exported names the package

TRUSTING = """
from transformers import AutoModelForMaskedLM
AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=len(sys.argv) > 2)
"""


def test_without_the_package_the_error_of_any_saved_model_leads_to_it(tmp_path):
    saved = save(make("UltraFastBertForMaskedLM"), tmp_path / "saved")
    first = run_without_the_package(TRUSTING, tmp_path, saved)
    assert "trust_remote_code=True" in first.stderr.splitlines()[-1]
    second = run_without_the_package(TRUSTING, tmp_path, saved, "trust")
    assert "Run `pip install ultrafastbert`" in second.stderr.splitlines()[-1]


def test_with_the_package_installed_trusting_is_enough(tmp_path):
    """The package is not imported by the program, but by the file that comes with the model."""
    saved = save(make("UltraFastBertForMaskedLM"), tmp_path / "saved")
    program = (
        "import sys; from transformers import AutoModelForMaskedLM\n"
        "model = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "model.save_pretrained(sys.argv[2]); print(type(model))"
    )
    again = tmp_path / "again"
    done = subprocess.run([sys.executable, "-c", program, saved, again], capture_output=True, text=True)
    assert done.stdout.strip() == "<class 'ultrafastbert.modeling_ultrafastbert.UltraFastBertForMaskedLM'>", (
        done.stderr
    )
    assert {path.name for path in again.glob("*.py")} == {"requires_ultrafastbert.py"}


# the generated code


def test_generated_files_import_only_each_other_and_torch_and_transformers():
    files = travelling.travelling_code("1.2.3")
    for name, source in files.items():
        compile(source, name, "exec")
        assert source.startswith("# Generated from ultrafastbert.")
        assert " of ultrafastbert 1.2.3." in source.splitlines()[0]
        if name != "ops_native.py":
            assert "\nfrom ultrafastbert" not in source and "\n    from ultrafastbert" not in source


def test_imports_that_cannot_travel_are_refused(tmp_path):
    path = tmp_path / "module.py"
    for source, problem in (
        ("import ultrafastbert.ops", "line 1: it should be from ultrafastbert.MODULE import NAME"),
        ("x = 1\nfrom ultrafastbert import FFF", "line 2: FFF should be imported from the module that defines it"),
    ):
        with pytest.raises(ValueError, match=problem):
            travelling._rewrite(source, path)


# the card


def card_of(directory):
    text = (directory / "README.md").read_text()
    _, metadata, body = text.split("---\n", 2)
    return yaml.safe_load(metadata), body


def test_the_card_of_a_pretrained_model_states_its_run(small_run, tmp_path):
    out = export(small_run / "final", tmp_path / "out")
    metadata, text = card_of(out)
    assert metadata["pipeline_tag"] == "fill-mask" and metadata["library_name"] == "transformers"
    record = json.loads((small_run / "final" / "pretraining.json").read_text())
    assert f"{record['accuracy']:.1%} and a loss of {record['loss']:.3f}" in text
    assert "12 steps" in text and "batch_size 16" in text and "seed 0" in text and "size 2x3" in text
    assert record["data_fingerprint"] in text and str(small_run.parent) not in text
    assert "| 1x16 |" in text and "nan" not in text
    assert (out / "pretraining.json").read_text() == (small_run / "final" / "pretraining.json").read_text()


def test_the_card_of_a_fine_tuned_model_states_its_result(tmp_path):
    source = save(make("UltraFastBertForSequenceClassification"), tmp_path / "seed-3" / "model")
    result = {"task": "stsb", "lr": 4e-5, "seed": 3, "rows": {"train": 50}, "settings": {"epochs": 5}}
    result["evaluations"] = {"STS-B": {"values": {"spearman": 0.5}, "warnings": []}}
    (tmp_path / "seed-3" / "result.json").write_text(json.dumps(result))
    _, text = card_of(export(source, tmp_path / "out"))
    assert "Fine-tuned on stsb (train 50 examples)" in text and "epochs 5, lr 4e-05, seed 3" in text
    assert "STS-B, development set: spearman 0.5" in text


def test_the_card_calls_unknown_what_is_not_recorded(tmp_path):
    _, text = card_of(export(save(make(), tmp_path / "in"), tmp_path / "out"))
    assert text.count("unknown") == 2 and "Unknown: no record of an evaluation" in text


# pushing, and errors


def test_push_uploads_the_directory(tmp_path, monkeypatch, capsys):
    import huggingface_hub

    calls = []

    class Commit:
        commit_url = "https://example.org/commit"

    def upload(repo_id, folder_path):
        calls.append((repo_id, (Path(folder_path) / "README.md").read_text()))
        return Commit

    monkeypatch.setattr(huggingface_hub, "create_repo", lambda name, exist_ok: calls.append((name, exist_ok)))
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    export(save(make(), tmp_path / "in"), tmp_path / "out", "--push", "me/it")
    assert calls[0] == ("me/it", True) and calls[1][0] == "me/it" and 'from_pretrained("me/it"' in calls[1][1]
    out = capsys.readouterr().out
    assert "pushed to https://example.org/commit" in out and 'AutoModel.from_pretrained("me/it"' in out


def test_a_failed_push_leaves_the_directory(tmp_path, monkeypatch, capsys):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "create_repo", fail)
    with pytest.raises(SystemExit) as caught:
        export(save(make(), tmp_path / "in"), tmp_path / "out", "--push", "me/it")
    assert caught.value.code == 1
    assert "is written, but could not be pushed to me/it: no network" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_wrong_directories_are_named(tmp_path, capsys):
    saved = save(make(), tmp_path / "in")
    for model, out, problem in (
        (tmp_path / "nowhere", tmp_path / "out", "has no config.json"),
        (saved, saved, "exists and is not an empty directory"),
    ):
        with pytest.raises(SystemExit) as caught:
            export(model, out)
        assert caught.value.code == 1 and problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(UserError, match="is a BertModel; it should be one of UltraFastBertModel"):
        load_model(tmp_path / "bert")
