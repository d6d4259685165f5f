"""Real encryption by Concrete (TFHE with programmable bootstrapping): lookups of at most 6 bits after exact truncation.

Concrete compiles the network to machine code for the server and a specification without weights for the client.
Licence: BSD-3-Clause-Clear, which grants no patent rights; its maker asks commercial users to buy a patent licence.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from layerscope.errors import MissingExtraError
from layerscope.methods.encrypted.backends import concrete_emit
from layerscope.methods.encrypted.backends.engine import Facts, Program, extremal_codes
from layerscope.methods.encrypted.errors import EngineError, EnvelopeError
from layerscope.methods.encrypted.graph import Graph, Ints

#: Versions that the emitted operations were checked on.
_OLDEST, _NEWEST = (2, 9), (3, 0)


def load_fhe() -> Any:
    """The engine's module.

    Raises:
        MissingExtraError: it, or the ``pkg_resources`` it needs and does not declare, is not installed.
        EngineError: a version whose operations were not checked.
    """
    try:
        found = version("concrete-python")
    except PackageNotFoundError:
        raise MissingExtraError("concrete-python", "encrypted", "the concrete backend") from None
    release = tuple(int(part) for part in found.split(".")[:2])
    if not _OLDEST <= release < _NEWEST:
        raise EngineError(f"concrete-python {found} was never checked here; install 'concrete-python>=2.9,<3'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own pkg_resources deprecation
        try:
            return import_module("concrete.fhe")
        except ImportError as error:
            if "pkg_resources" not in str(error):
                raise
            raise EngineError("concrete-python needs pkg_resources: pip install 'setuptools<81'") from error


class ConcreteEngine:
    """Compiles integer networks with Concrete."""

    name = "concrete"

    def version(self) -> str:
        """Version of concrete-python."""
        load_fhe()
        return version("concrete-python")

    def check(self, graph: Graph) -> None:
        """See :func:`~layerscope.methods.encrypted.backends.concrete_emit.check`."""
        concrete_emit.check(graph)

    def compile(self, graph: Graph, security: int, max_failure: float) -> Program:
        """Compile to machine code; takes seconds to minutes.

        Raises:
            EngineError: a security level that the engine does not offer.
        """
        fhe = load_fhe()
        circuit = compile_circuit(fhe, graph, security, max_failure)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "server.zip"
            circuit.server.save(path)
            server = path.read_bytes()
        facts = Facts(
            security,
            float(circuit.global_p_error),
            int(circuit.programmable_bootstrap_count),
            int(circuit.size_of_bootstrap_keys),
            int(circuit.size_of_keyswitch_keys),
            int(circuit.size_of_inputs),
            int(circuit.size_of_outputs),
        )
        return Program(server, circuit.client.specs.serialize(), facts)

    def client(self, payload: bytes) -> ConcreteClient:
        """The client's side."""
        return ConcreteClient(load_fhe(), payload)

    def server(self, payload: bytes) -> ConcreteServer:
        """The server's side. The payload holds machine code: load only what you compiled yourself."""
        return ConcreteServer(load_fhe(), payload)


def compile_circuit(fhe: Any, graph: Graph, security: int, max_failure: float) -> Any:
    """Concrete's own circuit object, with the sound range of every node in place of measured ones."""
    levels = {int(str(level)): level for level in fhe.SecurityLevel} if hasattr(fhe, "SecurityLevel") else {128: None}
    if security not in levels:
        raise EngineError(f"security must be one of {sorted(levels)} bits, got {security}")
    emitted = concrete_emit.emit(graph, fhe)
    options: dict[str, Any] = {} if levels[security] is None else {"security_level": levels[security]}
    configuration = fhe.Configuration(
        global_p_error=max_failure,
        additional_pre_processors=[_sound_ranges(emitted.ranges)],
        compress_evaluation_keys=True,
        **options,
    )
    compiler = fhe.Compiler(emitted.function, {"x": "encrypted"})
    try:
        return compiler.compile([codes[None] for codes in extremal_codes(graph)], configuration=configuration)
    except RuntimeError as error:
        raise EngineError(
            f"concrete could not compile this network ({str(error).splitlines()[0]}); "
            "try other widths, or the circuit backend"
        ) from error


def _sound_ranges(ranges: dict[str, concrete_emit.Box]) -> Any:
    """A compiler pass that replaces the ranges seen on sample inputs by ours, which no input can leave."""
    representation = import_module("concrete.fhe.representation")
    integer = import_module("concrete.fhe.dtypes").Integer

    def apply(self: Any, graph: Any) -> None:
        for node in graph.query_nodes():
            if node.operation == representation.Operation.Constant or node.tag not in ranges:
                continue  # constants, the input and the last reshape keep what they have
            lo, hi = ranges[node.tag]
            assert lo <= node.bounds[0], f"{node.tag}: measured below the sound range"
            assert node.bounds[1] <= hi, f"{node.tag}: measured above the sound range"
            node.bounds = (np.int64(lo), np.int64(hi))
            node.output.dtype = integer.that_can_represent([lo, hi])

    return type("SoundRanges", (representation.GraphProcessor,), {"apply": apply})()


class ConcreteClient:
    """Holds Concrete's secret keys for one network."""

    def __init__(self, fhe: Any, specs: bytes) -> None:
        self._fhe = fhe
        try:
            json.loads(specs)
            self._client = fhe.Client(fhe.ClientSpecs.deserialize(specs))
        except (ValueError, RuntimeError) as error:
            raise EnvelopeError(f"this client file holds no specification of {fhe.__name__}") from error

    def __repr__(self) -> str:
        return "ConcreteClient(keys hidden)"

    def keygen(self) -> None:
        """New keys from the engine's cryptographic generator."""
        self._client.keygen(force=True)

    def secret(self) -> bytes:
        """All keys, the large public ones too: the engine cannot write, or read, the secret ones alone."""
        return bytes(self._client.keys.serialize())

    def evaluation(self) -> bytes:
        """The public evaluation keys: hundreds of megabytes."""
        return bytes(self._client.evaluation_keys.serialize())

    def restore(self, secret: bytes) -> None:
        """Take the secret keys from their bytes."""
        try:
            keys = self._fhe.Keys.deserialize(secret)
        except RuntimeError as error:
            raise EnvelopeError("these bytes hold no secret key of this engine") from error
        keys._specs = self._client.specs
        self._client.keys = keys

    def encrypt(self, codes: Ints) -> bytes:
        """One sample."""
        return bytes(self._client.encrypt(codes[None]).serialize())

    def decrypt(self, answer: bytes) -> Ints:
        """One answer, flat."""
        try:
            value = self._fhe.Value.deserialize(answer)
            return np.asarray(self._client.decrypt(value), np.int64).reshape(-1)
        except RuntimeError as error:
            raise EnvelopeError(f"the engine cannot read this answer ({error})") from error


class ConcreteServer:
    """Evaluates one network under the evaluation key that comes with a request."""

    def __init__(self, fhe: Any, payload: bytes) -> None:
        self._fhe = fhe
        self._keys: tuple[str, Any] | None = None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "server.zip"
            path.write_bytes(payload)
            self._server = fhe.Server.load(path)

    def run(self, sample: bytes, evaluation: bytes, key: str) -> bytes:
        """One sample; the last key is kept unpacked, because unpacking takes as long as a small network."""
        try:
            if self._keys is None or self._keys[0] != key:
                self._keys = (key, self._fhe.EvaluationKeys.deserialize(evaluation))
            value = self._fhe.Value.deserialize(sample)
            return bytes(self._server.run(value, evaluation_keys=self._keys[1]).serialize())
        except (RuntimeError, ValueError) as error:
            raise EnvelopeError(f"the engine cannot evaluate this request ({error})") from error
