"""Every way to name a network, and every way to name one wrongly."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from layerscope import nets, norms, sources
from layerscope.errors import MissingExtraError, SourceError, SpecError
from layerscope.sources import factories, zoo

SHAPE = (1, 12, 12)


def same(a, b):
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn

            def net(in_shape=(3, 8, 8), classes=2):
                return nn.Sequential(nn.Conv2d(in_shape[0], 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                                     nn.LazyLinear(classes)) if False else nn.Sequential(
                    nn.Conv2d(in_shape[0], 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                    nn.Linear(4, classes))

            def normed(norm):
                from layerscope import norms
                return nn.Sequential(nn.Conv2d(1, 4, 3), norms.build(norm, 4))

            def nothing():
                net()

            def broken(classes):
                raise ValueError("too many")

            def needy(width, *, depth):
                return nn.Linear(width, depth)

            ready = nn.Linear(2, 2)
            number = 3
            """
        )
    )
    return path


class TestReferenceNets:
    def test_is_the_net_that_the_nets_room_builds(self):
        built = sources.build("resnet20:width=4", "group:size=2", in_shape=SHAPE, classes=3, seed=5)
        assert (built.label, built.norm, built.notes, built.plan) == ("resnet20:width=4", "group:size=2", (), None)
        assert same(built.module, nets.build("resnet20:width=4", "group:size=2", in_shape=SHAPE, classes=3, seed=5))

    def test_as_is_is_batch_norm(self):
        built = sources.build("mlp", "as is", in_shape=(4,))
        assert built.norm == sources.AS_IS
        assert same(built.module, nets.build("mlp", "batch", in_shape=(4,)))

    def test_a_wrong_parameter_is_the_nets_rooms_error(self):
        with pytest.raises(SpecError):
            sources.build("resnet20:widht=4")


needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


@needs_timm
class TestZoo:
    def test_timm_with_surgery(self):
        built = sources.build("timm:resnet18", "group:size=8", in_shape=(1, 32, 32), classes=3)
        assert built.module(torch.randn(2, 1, 32, 32)).shape == (2, 3)
        assert len(built.plan.swapped) == 20
        assert not any(isinstance(m, nn.BatchNorm2d) for m in built.module.modules())
        assert "start with scale 0" in built.notes[-1]

    def test_timm_options_and_fixed_image_sizes(self):
        net = sources.build("timm:vit_tiny_patch16_224:depth=2", in_shape=(3, 32, 48), classes=4)
        assert net.module(torch.randn(2, 3, 32, 48)).shape == (2, 4)
        assert len(net.module.blocks) == 2
        assert net.notes == ("built for images of 32x48",)

    @pytest.mark.parametrize(
        ("name", "shape"), [("resnet18", (1, 32, 32)), ("mobilenet_v3_small", (3, 32, 32)), ("vit_b_16", (1, 32, 32))]
    )
    def test_torchvision(self, name, shape):
        built = sources.build(f"torchvision:{name}", in_shape=shape, classes=3)
        assert built.module(torch.randn(2, *shape)).shape == (2, 3)
        assert (shape[0] == 1) == any("rebuilt for 1 input channel" in n for n in built.notes)

    @pytest.mark.slow
    def test_torchvision_nets_with_auxiliary_outputs_return_one_tensor(self):
        built = sources.build("torchvision:googlenet", in_shape=(3, 64, 64), classes=3)
        assert built.module(torch.randn(2, 3, 64, 64)).shape == (2, 3)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("timm:resnet81", "timm .* has no model 'resnet81'; did you mean .*resnet18"),
            ("torchvision:resnet8", "no classification model 'resnet8'; did you mean 'resnet18'"),
            ("timm:resnet18:widht=3", "cannot be built with .*widht=3: TypeError"),
            ("timm:", "expected  timm:name"),
        ],
    )
    def test_wrong_names_and_options(self, name, message):
        with pytest.raises(SourceError, match=message):
            sources.build(name, in_shape=(3, 32, 32))

    def test_a_missing_package_names_the_extra(self, monkeypatch):
        monkeypatch.setattr(zoo, "find_spec", lambda name: None)
        monkeypatch.delitem(sys.modules, "torchvision", raising=False)
        for source in ("timm:resnet18", "torchvision:resnet18"):
            with pytest.raises(MissingExtraError, match=r"layerscope\[zoo\]"):
                sources.build(source)

    def test_operators_are_declared_only_if_they_do_not_load(self):
        """In a fresh interpreter: declared once, and only where the real ones do not load."""
        code = """
            from layerscope.sources import zoo
            before = zoo._operators_load
            loads = []
            zoo._operators_load = lambda folder: loads.append(before(folder)) or loads[-1]
            assert zoo.import_torchvision() is zoo.import_torchvision()
            assert len(loads) == 1
            assert len(zoo._libraries) == (not loads[0])
        """
        run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


class TestUserCode:
    def test_a_factory_in_a_file_gets_what_its_signature_names(self, user_file):
        built = sources.build(f"{user_file}:net", "layer", in_shape=SHAPE, classes=5)
        assert built.module(torch.randn(2, *SHAPE)).shape == (2, 5)
        assert isinstance(built.module[1], norms.LayerNorm)
        assert built.plan.swapped

    def test_a_factory_that_takes_the_norm_gets_it(self, user_file):
        built = sources.build(f"{user_file}:normed", "group:size=2")
        assert built.notes == ("the norm was handed to the factory",)
        assert built.plan is None
        assert isinstance(built.module[1], norms.GroupNorm)

    def test_a_ready_module_in_a_file(self, user_file):
        assert isinstance(sources.build(f"{user_file}:ready").module, nn.Linear)

    @pytest.mark.parametrize(
        ("tail", "message"),
        [
            (":nte", r"has no 'nte'; did you mean 'net' or"),
            ("", r"needs a function to call, .*train\.py:factory; it has net, normed, nothing, broken, needy"),
            (":nothing", r"returned None \(does it lack a return\?\), not a torch.nn.Module"),
            (":broken", r"raised ValueError: too many \(.*train\.py, line 19, in broken\)"),
            (":needy", "needs the argument.s. width, depth"),
            (":normed", "needs the argument.s. norm"),
            (":number", "is a int, not a function"),
        ],
    )
    def test_what_can_be_wrong_in_a_file(self, user_file, tail, message):
        with pytest.raises(SourceError, match=message):
            sources.build(f"{user_file}{tail}")

    def test_a_file_that_is_missing_or_does_not_run(self, tmp_path):
        with pytest.raises(SourceError, match="there is no file"):
            sources.build(str(tmp_path / "nowhere.py:net"))
        (tmp_path / "bad.py").write_text("import torch\n1 / 0\n")
        with pytest.raises(SourceError, match=r"ZeroDivisionError: .*bad\.py, line 2"):
            sources.build(f"{tmp_path}/bad.py:net")
        (tmp_path / "worse.py").write_text("def net(:\n")
        with pytest.raises(SourceError, match=r"SyntaxError: .*worse\.py, line 1"):
            sources.build(f"{tmp_path}/worse.py:net")

    def test_a_file_may_import_its_neighbours_and_is_read_again_when_it_changes(self, tmp_path):
        (tmp_path / "its_sibling_module.py").write_text("width = 3\n")
        path = tmp_path / "main.py"
        path.write_text(
            "from its_sibling_module import width\nfrom torch import nn\ndef net(): return nn.Linear(width, 1)"
        )
        before = list(sys.path)
        assert sources.build(f"{path}:net").module.in_features == 3
        assert sys.path == before
        path.write_text("from torch import nn\ndef net(): return nn.Linear(7, 1) # now longer")
        assert sources.build(f"{path}:net").module.in_features == 7

    def test_a_package(self):
        assert isinstance(sources.build("torch.nn:Identity").module, nn.Identity)
        with pytest.raises(SourceError, match=r"there is no module 'torch\.nnn' to import"):
            sources.build("torch.nnn:Identity")
        with pytest.raises(SourceError, match=r"there is no module 'nosuchpackage\.x' to import"):
            sources.build("nosuchpackage.x:net")

    def test_a_callable_and_its_errors(self):
        assert sources.build(lambda: nn.Linear(1, 1)).label == "<lambda>"
        assert sources.build(nn.Identity).label == "Identity"
        with pytest.raises(SourceError, match="returned a int"):
            sources.build(lambda: 3)
        with pytest.raises(SourceError, match="a network is a reference net"):
            sources.build(3)


class TestModules:
    def test_as_is_is_the_very_object(self):
        net = nn.Linear(2, 2)
        assert sources.build(net).module is net

    def test_a_norm_goes_into_a_copy(self):
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        built = sources.build(net, "layer", in_shape=SHAPE)
        assert isinstance(net[1], nn.BatchNorm2d)
        assert isinstance(built.module[1], norms.LayerNorm)
        assert torch.equal(built.module[0].weight, net[0].weight)
        assert built.module[0].weight is not net[0].weight
        assert built.notes == ("a copy, with the weights it had",)

    def test_what_was_not_done_is_said(self):
        net = nn.Sequential(nn.BatchNorm2d(4), nn.LocalResponseNorm(2))
        notes = sources.build(net, "group:size=3").notes
        assert any("1 of 2 norms were left as they are, such as '1': local response" in n for n in notes)
        assert any("group counts were adapted at 1 of 1 norms" in n for n in notes)
        assert any("every norm is batch already" in n for n in sources.build(nn.BatchNorm2d(4), "batch").notes)
        assert any("no norm was exchanged" in n for n in sources.build(nn.Linear(2, 2), "batch").notes)

    def test_an_example_that_does_not_fit_is_said_and_does_not_stop(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        notes = sources.build(net, "layer", in_shape=SHAPE).notes
        assert any("planned without an example, because the example does not run" in n for n in notes)

    def test_a_module_that_cannot_be_copied(self):
        net = nn.Sequential(nn.BatchNorm2d(4))
        net.stream = (n for n in ())
        with pytest.raises(SourceError, match=r"cannot be copied .*pass a function that makes it"):
            sources.build(net, "layer")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("resnet21", r"no network 'resnet21': expected .*did you mean .*'resnet20'"),
        ("timmm:resnet18", "did you mean 'timm'"),
        ("nosuchmodule:net", "there is no module 'nosuchmodule'"),
        ("", "no network ''"),
        ("tim:resnet18", "did you mean 'timm'"),
    ],
)
def test_names_that_mean_nothing(source, message):
    with pytest.raises(SourceError, match=message):
        sources.build(source)


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 2.5), (True, 2)])
def test_shapes_that_mean_nothing(shape):
    with pytest.raises(SourceError, match="is not the shape of one sample"):
        sources.build("mlp", in_shape=shape)


def test_an_unknown_norm_is_a_spec_error():
    with pytest.raises(SpecError, match="did you mean"):
        sources.build("mlp", "grup")


def test_the_seed_decides_and_global_generators_stay_as_they_were():
    def factory():
        net = nn.Linear(3, 3)
        net.scale = random.random() + np.random.rand()  # noqa: NPY002 - a user's factory may
        return net

    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002 - as above
    one, again, other = (sources.build(factory, seed=s).module for s in (1, 1, 2))
    assert torch.equal(one.weight, again.weight)
    assert one.scale == again.scale
    assert not torch.equal(one.weight, other.weight)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002 - as above
    assert torch.equal(torch.get_rng_state(), states[2])


def test_factories_without_a_signature_are_called_with_nothing():
    assert factories.call(nn.Identity, "x", {"classes": 3})[1] == frozenset()
