"""A PyTorch model's own step, measured for a prediction."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from dls import backends
from dls.predict import __main__ as predict
from dls.torch import measured

SIZES = (6, 5, 3)


def build() -> tuple[Any, Any]:
    first, second = torch.nn.Linear(*SIZES[:2]), torch.nn.Linear(*SIZES[1:])
    model = torch.nn.Sequential(first, torch.nn.ReLU(), second)
    x = torch.ones(4, SIZES[0])
    return model, lambda: model(x).square().mean()


def test_every_layer_has_its_time() -> None:
    layers, steps = measured.measure(*build(), 3)
    assert [(layer.name, layer.size) for layer in layers] == [("0", 35), ("2", 18)]
    assert len(steps) == 3
    for step in steps:
        assert step.forward > 0
        assert len(step.backward) == 2
        assert min(step.backward) > 0


def test_a_prediction_of_a_model_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backends, "default", lambda: "numpy")  # which loads in no time
    module = ModuleType("a_module_of_ones_own")
    module.build, module.odd = build, lambda: 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    given = ["--torch", f"{module.__name__}:build", "--hosts", "4", "--json"]
    assert predict.main([*given, "--methods", "dense,layerwise-topk", "--densities", "0.1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["method"] for each in found["methods"]} == {"dense", "layerwise-topk"}
    for name, words in (("none", "cannot be found"), ("odd", "must return a model")):
        assert predict.main(["--torch", f"{module.__name__}:{name}"]) == 2
        assert words in capsys.readouterr().err
