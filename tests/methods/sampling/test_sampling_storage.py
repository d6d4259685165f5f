"""A converted network as a file, and the command line that makes and reads it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from layerscope import data
from layerscope.cli import main
from layerscope.methods.sampling import (
    Noise,
    SamplingError,
    SamplingLinear,
    accuracy_by_bits,
    auroc,
    convert,
    evaluate,
    is_saved_model,
    load_model,
    predict,
    rotate,
    save_model,
)

FACTORY = """
from torch import nn
from layerscope.methods.sampling import Binarize, SamplingLinear

def plain(classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(256, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, classes),
    )

def native(classes=10):
    return nn.Sequential(nn.Flatten(), Binarize(), SamplingLinear(64, 32), nn.Linear(32, classes))
"""


def plain():
    space = {}
    exec(FACTORY, space)
    torch.manual_seed(0)
    return space["plain"]()


@pytest.mark.parametrize("inputs", ["binarize", "exact"])
def test_the_ordinary_network_becomes_the_saved_one(tmp_path, inputs):
    x = data.load("digits").x[:100]
    net = convert(plain(), x, noise="gaussian:std=0.5", inputs=inputs).model
    net[5].mode = "connection" if inputs == "binarize" else "marginal"
    file = save_model(net, tmp_path / "net.pt")
    assert is_saved_model(file)
    other = load_model(plain(), file)
    assert [type(m) for m in other] == [type(m) for m in net]
    assert other[5].variance == net[5].variance == "exact"
    assert other[5].noise.name == "gaussian:std=0.5"
    a, b = predict(net, x[:5], 3, seed=1, chunk=3), predict(other, x[:5], 3, seed=1, chunk=3)
    assert torch.equal(a.probs, b.probs)


def test_a_native_network_and_noise_of_ones_own(tmp_path):
    noise = Noise("uniform", 0.5, 12**-0.5, lambda s, g, d: torch.rand(s, generator=g, device=d))
    net = nn.Sequential(SamplingLinear(64, 8, noise=noise), nn.Linear(8, 2))
    file = save_model(net, tmp_path / "net.pt")
    same = nn.Sequential(SamplingLinear(64, 8, noise=noise), nn.Linear(8, 2))
    assert torch.equal(load_model(same, file)[0].weight, net[0].weight)
    with pytest.raises(SamplingError, match="a noise of your own, 'uniform'"):
        load_model(nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 2)), file)


def test_files_that_do_not_fit(tmp_path):
    net = nn.Sequential(SamplingLinear(16, 8), nn.Linear(8, 2))
    file = save_model(net, tmp_path / "net.pt")
    with pytest.raises(SamplingError, match="sampling layer at '0', here is ReLU"):
        load_model(nn.Sequential(nn.ReLU(), nn.Linear(8, 2)), file)
    with pytest.raises(SamplingError, match="does not fit Sequential"):
        load_model(nn.Sequential(SamplingLinear(16, 9), nn.Linear(9, 2)), file)
    with pytest.raises(SamplingError, match="there is no file"):
        load_model(net, tmp_path / "none.pt")
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    assert not is_saved_model(tmp_path / "weights.pt")
    (tmp_path / "text.pt").write_text("x")
    with pytest.raises(SamplingError, match="cannot be read as a saved sampling network"):
        load_model(net, tmp_path / "text.pt")
    with pytest.raises(SamplingError, match="no sampling layer"):
        save_model(nn.Linear(2, 2), tmp_path / "x.pt")


def test_an_evaluation_is_what_its_parts_say():
    test = data.load("digits", split="test")
    x, y = test.x[:60], test.y[:60]
    net = convert(plain(), x, noise="gaussian").model
    found = evaluate(net, x, y, 12, strangers={"turned": rotate(x, 90)}, seed=4)
    p = predict(net, x, 12, seed=4)
    assert found.accuracy == p.accuracy(y)
    assert found.nll == pytest.approx(float(nn.functional.nll_loss(p.probs.log(), y)))
    assert found.strangers == (("turned", auroc(p.entropy, predict(net, rotate(x, 90), 12, seed=4).entropy)),)
    assert found.settled is None
    assert f"accuracy {found.accuracy:.2%}" in str(found)
    assert evaluate(net, x, y, 40, confidence=0.9).settled is not None
    assert list(accuracy_by_bits(net, x, y, (2, 8), samples=3)) == [2, 8]


def test_images_are_turned_about_their_centre():
    x = torch.rand(2, 1, 7, 7) * 2 - 1
    torch.testing.assert_close(rotate(x, 90), torch.rot90(x, 1, (2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(rotate(x, 0), x, atol=1e-5, rtol=0)
    assert rotate(torch.ones(1, 1, 8, 8), 45)[0, 0, 0, 0] < 0  # what comes from outside is background
    with pytest.raises(SamplingError, match=r"images \[N, C, H, W\]"):
        rotate(torch.rand(3, 4), 90)


class TestCommandLine:
    @pytest.fixture
    def factory(self, tmp_path):
        file = tmp_path / "net.py"
        file.write_text(FACTORY)
        return file

    def test_from_a_checkpoint_to_a_device(self, factory, tmp_path, capsys):
        torch.save(plain().state_dict(), tmp_path / "plain.pt")
        saved, device, numbers = tmp_path / "nsm.pt", tmp_path / "device.npz", tmp_path / "numbers.json"
        main(
            ["sampling", "convert", f"{factory}:plain", "--checkpoint", str(tmp_path / "plain.pt"),
             "--save", str(saved), "--epochs", "6", "--batch-size", "50", "--lr", "0.01", "--noise", "gaussian"]
        )  # fmt: skip
        out = capsys.readouterr().out
        assert "0: Conv2d -> SamplingConv2d (takes the place of BatchNorm2d '1', ReLU '2'" in out
        assert "7: dropout -> identity" in out
        accuracy = float(re.search(r"accuracy ([\d.]+)%", out)[1])
        assert accuracy > 80
        main(["sampling", "predict", f"{factory}:plain", str(saved), "--samples", "20", "--json", str(numbers)])
        out = capsys.readouterr().out
        assert abs(float(re.search(r"accuracy ([\d.]+)%", out)[1]) - accuracy) < 4
        assert "AUROC of the entropy, turned by 90 degrees" in out
        assert json.loads(numbers.read_text())["examples"] == 360
        main(["sampling", "predict", f"{factory}:plain", str(saved), "--confidence", "0.9", "--limit", "50"])
        assert "settled before the last pass" in capsys.readouterr().out
        main(["sampling", "calibrate", f"{factory}:plain", str(saved), "--samples", "10", "--limit", "100"])
        out = capsys.readouterr().out
        assert "10 passes: accuracy" in out
        assert "signal" in out
        main(["sampling", "export", f"{factory}:plain", str(saved), "--save", str(device), "--bits", "4",
              "--data", "digits", "--limit", "50", "--samples", "5"])  # fmt: skip
        out = capsys.readouterr().out
        assert "2 bits: accuracy" in out
        with np.load(device) as content:
            assert content["0/weights"].shape == (16, 1, 3, 3)
            assert np.abs(content["0/weights"]).max() <= 7

    def test_plain_weights_of_a_native_network(self, factory, tmp_path, capsys):
        space = {}
        exec(FACTORY, space)
        torch.save(space["native"]().state_dict(), tmp_path / "native.pt")
        main(
            ["sampling", "predict", f"{factory}:native", str(tmp_path / "native.pt"), "--limit", "20", "--samples", "5"]
        )
        assert "20 examples" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["predict", "{net}:plain", "{dir}/none.pt"], "no sampling layer"),
            (["predict", "{net}:native", "{dir}/none.pt"], "there is no checkpoint"),
            (["predict", "{net}:nothing", "{dir}/none.pt"], "nothing"),
            (["predict", "{net}:native", "{dir}/none.pt", "--limit", "0"], "at least 1"),
            (["convert", "{net}:plain", "--save", "{dir}/x.pt", "--noise", "bernoulli:p=1"], "0 < p < 1"),
        ],
    )
    def test_one_sentence_and_exit_code_2(self, factory, tmp_path, capsys, arguments, message):
        filled = [a.format(net=factory, dir=tmp_path) for a in arguments]
        with pytest.raises(SystemExit) as ended:
            main(["sampling", *filled])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
