"""Every bad input is refused with an error that names it and the way out, and changes nothing."""

import json
import math

import numpy as np
import pytest
import torch
from small_models import Snapshot, batches, classifier, loss_fn, train
from torch import nn

import autoopt
from autoopt import ArtifactError, AutoOptError, ModelError, PlanError, ProfileError
from autoopt.meta import artifact

STEPS = {"total_steps": 16, "warmup_steps": 4}


def refused(model, error, *words, **options):
    """The message of the error that `select` raises, after checking that the model is as it was."""
    before = Snapshot(model) if isinstance(model, nn.Module) else None
    with pytest.raises(error) as caught:
        autoopt.select(model, **{**STEPS, "selector": "default"} | options)
    if before is not None:
        before.assert_unchanged()
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} is missing from: {message}"
    return message


# ---- the model -----------------------------------------------------------------------------------


class Spectral(nn.Module):
    def __init__(self, param):
        super().__init__()
        self.scale = nn.Linear(3, 3)
        self.spectrum = param


def test_a_model_without_trainable_parameters():
    frozen = classifier().requires_grad_(False)
    for model in (frozen, nn.ReLU(), nn.Sequential()):
        refused(model, ModelError, "no trainable parameter", "requires_grad_(True)")


def test_complex_parameters():
    model = Spectral(nn.Parameter(torch.zeros(3, dtype=torch.complex64)))
    refused(model, ModelError, "'spectrum'", "Spectral", "complex64", "view_as_real")


def test_quantised_parameters():
    model = Spectral(nn.Parameter(torch.zeros(4, 4).to(torch.float8_e4m3fn)))
    refused(model, ModelError, "'spectrum'", "float8", "requires_grad_(False)")
    # Integer weights cannot require gradients: what is left to train decides.
    whole = Spectral(nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False))
    assert autoopt.select(whole, selector="default", **STEPS).phase == "warmup"
    whole.scale.requires_grad_(False)
    refused(whole, ModelError, "no trainable parameter", "quantised")


def test_lazy_modules():
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(ModelError, match=r"'0\.weight' of LazyLinear has no shape yet.*forward pass"):
        autoopt.select(model, selector="default", **STEPS)


@pytest.mark.parametrize("value", [None, [torch.nn.Parameter(torch.zeros(2))], "model"])
def test_what_is_no_model(value):
    refused(value, ModelError, type(value).__name__, "torch.nn.Module")


def test_a_parameter_shared_by_two_models():
    first, second = classifier(), classifier(1)
    second.head.weight = first.head.weight
    optimizer = autoopt.select(first, selector="default", **STEPS)
    refused(second, ModelError, "'head.weight'", "Classifier", "one nn.Module")
    # The ways out that the message names.
    both = nn.ModuleDict({"first": first, "second": second})
    assert "second.hidden.weight" in autoopt.select(both, selector="default", **STEPS).plan.layers
    del optimizer, both
    first, second = classifier(), classifier(1)
    second.head.weight = first.head.weight
    optimizer = autoopt.select(first, selector="default", **STEPS)
    del optimizer
    autoopt.select(second, selector="default", **STEPS)


def test_selecting_again_for_a_model_or_a_part_of_it_is_allowed():
    model = classifier()
    first = autoopt.select(model, selector="default", **STEPS)
    second = autoopt.select(model, selector="default", **STEPS)
    head = autoopt.select(model.head, selector="default", **STEPS)
    assert first.plan == second.plan and list(head.plan.layers) == ["weight", "bias"]


# ---- the arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "warmup"), [(4, 4), (3, 4), (1, 1), (20, None), (5, None)])
def test_total_steps_not_above_warmup_steps(total, warmup):
    message = refused(classifier(), ValueError, "total_steps", total_steps=total, warmup_steps=warmup)
    assert f"total_steps ({total})" in message and "warmup_steps" in message
    assert f"({20 if warmup is None else warmup}, " in message and "smaller" in message


@pytest.mark.parametrize("name", ["total_steps", "warmup_steps"])
@pytest.mark.parametrize("value", [0, -5, 2.5, True, "100", math.nan])
def test_steps_that_are_no_positive_whole_number(name, value):
    refused(classifier(), ValueError, name, repr(value), **{name: value})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "speed"}, ("objective", "'speed'", "'loss'", "'memory'")),
        ({"max_state_bytes": 10.5}, ("max_state_bytes", "10.5")),
        ({"max_state_bytes": -1}, ("max_state_bytes", "-1")),
        ({"max_state_bytes": True}, ("max_state_bytes", "True")),
        ({"max_state_bytes": 10, "candidates": ["adamw"]}, ("max_state_bytes=10", "4,672 bytes", "candidates")),
        ({"schedule": "cosine"}, ("schedule", "'cosine'", "'auto'")),
        ({"candidates": []}, ("candidates", "catalog")),
        ({"candidates": "adamw"}, ("candidates", "list")),
        ({"candidates": ["muon"]}, ("candidates", "'muon'", "role group 'vector'", "adamw")),
    ],
)
def test_other_arguments_out_of_range(options, words):
    refused(classifier(), ValueError, *words, **options)


def test_an_unknown_candidate():
    refused(classifier(), PlanError, "'adamw2'", "'adamw'", candidates=["adamw2"])


@pytest.mark.parametrize(("given", "missing"), [("batches", "loss_fn"), ("loss_fn", "batches")])
def test_half_of_what_profiling_aside_needs(given, missing):
    value = {"batches": list(batches(9)), "loss_fn": loss_fn}[given]
    refused(classifier(), ProfileError, f"{given} was given without {missing}", **{given: value})


# ---- batches and loss_fn -------------------------------------------------------------------------


def scaled(factor):
    return lambda model, batch: loss_fn(model, batch) * factor


def fails(model, batch):
    model(batch[0])
    raise RuntimeError("the user's own error")


def per_example(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (lambda model, batch: loss_fn(model, batch).item(), ProfileError, ("loss_fn", "scalar tensor", "float")),
        (lambda model, batch: None, ProfileError, ("loss_fn", "scalar tensor", "NoneType")),
        (per_example, ProfileError, ("loss_fn", "scalar", "(16,)", "mean")),
        (scaled(math.nan), ProfileError, ("loss_fn", "nan", "step 2", "data")),
        (scaled(math.inf), ProfileError, ("loss_fn", "inf", "step 2")),
        (lambda model, batch: loss_fn(model, batch).detach(), ProfileError, ("loss_fn", "detach")),
        (fails, RuntimeError, ("the user's own error",)),
    ],
    ids=["float", "none", "vector", "nan", "inf", "detached", "raises"],
)
def test_a_loss_fn_that_goes_wrong_in_the_third_step(bad, error, words):
    model = classifier()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), batches(1))
    calls = []

    def turns_bad(model, batch):
        calls.append(None)
        return (bad if len(calls) == 3 else loss_fn)(model, batch)

    refused(model, error, *words, batches=batches(9), loss_fn=turns_bad)
    assert len(calls) == 3


def test_a_loss_fn_that_ignores_the_model():
    weight = torch.ones(3, requires_grad=True)
    refused(classifier(), ProfileError, "gradient", "loss_fn", batches=batches(9), loss_fn=lambda *_: weight.sum())
    assert weight.grad is None or weight.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("kind", [list, iter], ids=["list", "generator"])
def test_batches_exhausted_early(count, kind):
    data = kind(batches(count)) if kind is list else batches(count)
    message = refused(classifier(), ProfileError, "batches", batches=data, loss_fn=loss_fn)
    assert f"after {count} of 4" in message and "more" in message


# ---- the artifact --------------------------------------------------------------------------------


def test_an_artifact_that_is_whole_is_used(artifact_path):
    optimizer = autoopt.select(classifier(), selector=artifact_path, **STEPS)
    assert optimizer.phase == "warmup"
    model = classifier()
    optimizer = autoopt.select(model, selector=str(artifact_path), **STEPS)
    train(model, optimizer, batches(4))
    assert optimizer.recommendation.provenance["artifact_sha256"] == artifact.load(artifact_path).sha256


def test_a_missing_artifact(tmp_path):
    path = tmp_path / "nowhere.npz"
    refused(classifier(), ArtifactError, "no selector artifact", str(path), "selector='default'", selector=path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_artifact(artifact_path, share):
    content = artifact_path.read_bytes()
    artifact_path.write_bytes(content[: int(share * len(content))])
    refused(classifier(), ArtifactError, "truncated", str(artifact_path), "selector='default'", selector=artifact_path)


@pytest.mark.parametrize(
    "content",
    [b"no archive at all", b"\x93NUMPY\x01\x00v\x00", b"\x80\x04K\x01.", b"PK\x05\x06" + bytes(18)],
    ids=["text", "npy header", "pickle", "empty archive"],
)
def test_an_artifact_that_is_something_else(artifact_path, content):
    artifact_path.write_bytes(content)
    refused(classifier(), ArtifactError, "corrupted", "selector='default'", selector=artifact_path)


def test_a_single_array_is_no_artifact(artifact_path):
    with artifact_path.open("wb") as file:
        np.save(file, np.arange(3.0))
    refused(classifier(), ArtifactError, "corrupted", "selector='default'", selector=artifact_path)


def test_a_changed_byte_anywhere_is_noticed_or_harmless(artifact_path):
    content = artifact_path.read_bytes()
    whole = artifact.load(artifact_path)
    noticed = 0
    positions = range(7, len(content), max(1, len(content) // 60))
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        artifact_path.write_bytes(bytes(damaged))
        try:
            # The archive's own book-keeping, such as dates, has bytes that say nothing.
            assert artifact.load(artifact_path).sha256 == whole.sha256, position
        except ArtifactError as error:
            assert "corrupted" in str(error) or "schema" in str(error)
            noticed += 1
    assert noticed > len(positions) / 2


def rewritten(path, **changes):
    """The artifact with other header fields and its old hash."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    header = json.loads(bytes(arrays["header"]).decode()) | changes
    arrays["header"] = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
    np.savez(path, **arrays)


def test_an_artifact_of_a_newer_schema(artifact_path):
    newer = artifact.ARTIFACT_SCHEMA_VERSION + 1
    rewritten(artifact_path, schema_version=newer)
    refused(classifier(), ArtifactError, "newer", f"version {newer}", "selector='default'", selector=artifact_path)


def test_an_artifact_whose_content_was_exchanged(artifact_path):
    rewritten(artifact_path, margin=-1.0)
    refused(classifier(), ArtifactError, "corrupted", "SHA-256", selector=artifact_path)


def test_the_default_is_never_a_silent_fallback(artifact_path):
    artifact_path.write_bytes(b"")
    refused(classifier(), ArtifactError, "selector='default'", selector=artifact_path)
    model = classifier()
    optimizer = autoopt.select(model, selector="default", **STEPS)
    train(model, optimizer, batches(4))
    assert optimizer.recommendation.abstained
    assert "selector='default'" in optimizer.recommendation.summary()


def test_all_of_these_can_be_caught_as_one():
    for error in (ArtifactError, ModelError, PlanError, ProfileError):
        assert issubclass(error, AutoOptError)
