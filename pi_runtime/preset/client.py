"""The client: holds the input and a seed a bundle, and alone learns the logits.

One-time use (PROTOCOL.md, section 4): the server marks a bundle spent, durably, and answers OPENED; then the client
marks it spent, durably; only then is the first masked byte sent. Whatever happens after OPEN was sent, the bundle is
never tried again.
"""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

from pi_runtime.closing import Closing
from pi_runtime.errors import ConfigError, RemoteProtocolError
from pi_runtime.net.channel import Channel
from pi_runtime.net.endpoint import Endpoint
from pi_runtime.net.frames import PeerRefusal
from pi_runtime.net.messages import ErrorCode, Kind
from pi_runtime.preset.input_range import check_images
from pi_runtime.preset.ledger import Ledger
from pi_runtime.preset.linear_ops import Weight, pack
from pi_runtime.preset.model import ID_BYTES, PublicModel
from pi_runtime.preset.offline import PackedPad, expand_weight_pad
from pi_runtime.preset.online import ClientInference, logit_bytes, opening_sizes
from pi_runtime.preset.provider import BundleProvider, DealerProvider
from pi_runtime.preset.reply import expect
from pi_runtime.preset.shares import BundlePads
from pi_runtime.preset.store import BundleStore, Lease
from pi_runtime.preset.warmup import warm_up
from pi_runtime.primitives.prg import SEED_BYTES, Seed

_MAX_ATTEMPTS = 5
"""Bundles made for one inference: another client on the same store may take one, or the server be restarted."""


class PresetClient(Closing):
    """One client of one server. Use it from one thread.

    server, dealer: their addresses. server_name, dealer_name: the only ones that will do; any name of that role that
    the CA certified if None. store: where the seeds of its bundles are. threads: CPU threads of the offline linear
    layers.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        server: str,
        dealer: str,
        store: BundleStore,
        server_name: str | None = None,
        dealer_name: str | None = None,
        threads: int = 1,
    ) -> None:
        self.ledger = Ledger()
        self._endpoint = endpoint
        self.name = endpoint.identity.name
        self._server = server
        self._server_name = server_name
        self._store = store
        self._channel: Channel | None = None
        self._model: PublicModel | None = None
        self._weight_pads: dict[str, Weight] = {}
        self._reserved: ClientInference | None = None
        self._reserved_batch = 0
        self._provider: BundleProvider = DealerProvider(
            endpoint, dealer, self.load_weight_pads, name=dealer_name, ledger=self.ledger, threads=threads
        )

    @property
    def model(self) -> PublicModel:
        """The server's model; connects to learn it."""
        self._connected()
        assert self._model is not None
        return self._model

    def load_weight_pads(self) -> PackedPad:
        """D of the model, which bundles are made with: fetched as a seed and expanded at the first call."""
        model = self.model
        if not self._weight_pads:
            channel = self._connected()
            channel.send_control(Kind.GET_SEED)
            seed = Seed(channel.recv_array(Kind.WEIGHT_SEED, SEED_BYTES).tobytes())
            names = bytes.fromhex(model.graph_hash), bytes.fromhex(model.model_id)
            self._weight_pads = {
                step.name: pack(step, expand_weight_pad(step, seed, *names)) for step in model.program.linear_steps
            }
        return self._weight_pads

    def prepare(self, batch: int, count: int = 1) -> None:
        """Makes ``count`` bundles for ``batch`` images each, into both stores.

        Raises:
            RemoteProtocolError: a peer went away, refused or broke the protocol.
        """
        self._release()
        for _ in range(count):
            self._prepare_one(batch)

    def ready(self, batch: int) -> int:
        """How many unspent bundles of this model and batch this client has in its store."""
        return self._store.count_ready(owner=self.name, batch=batch, **self.model.fields)

    def reserve(self, batch: int) -> None:
        """Opens the next unspent bundle for ``batch`` images, made now if there is none; both sides have spent it.

        Everything that does not depend on the input is done here: :meth:`infer` then costs the online phase alone.
        """
        if self._reserved is not None and self._reserved_batch == batch and self._is_alive():
            return
        self._release()
        attempts = _MAX_ATTEMPTS
        while self._reserved is None:
            lease = self._store.next_ready(owner=self.name, batch=batch, **self.model.fields)
            if lease is None:
                if not attempts:
                    raise RemoteProtocolError("the server keeps refusing the bundles that were made with it")
                attempts -= 1
                self._prepare_one(batch)
                continue
            with lease:
                self._open(lease)
        self._reserved_batch = batch

    def infer(self, images: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Logits [B, classes] of ``images`` [B, C, H, W], normalised; uses up one bundle.

        Raises:
            ConfigError: images of another shape than the network's, or with values beyond its range; nothing is spent.
            RemoteProtocolError: the server went away, refused or broke the protocol; the bundle is lost.
        """
        program = self.model.program
        if images.ndim != 4 or images.shape[1:] != program.input_shape or not len(images):
            raise ConfigError(f"images must be [B, {', '.join(map(str, program.input_shape))}], got {images.shape}")
        check_images(images, program)
        batch = len(images)
        self.reserve(batch)
        inference, channel = self._reserved, self._channel
        self._reserved = None
        assert inference is not None
        assert channel is not None
        try:
            channel.send_array(Kind.INPUT, inference.mask_input(images))
            for step in program.gate_steps:
                opening = channel.recv_array(Kind.SERVER_OPEN, opening_sizes(step, batch).opening, layer=step.index)
                channel.send_array(Kind.CLIENT_ANSWER, inference.answer(step, opening.data), layer=step.index)
            return inference.logits(channel.recv_array(Kind.LOGITS, logit_bytes(program, batch)).data)
        except BaseException:
            self._disconnect()
            raise

    def close(self) -> None:
        """Ends the connections; a reserved bundle is lost."""
        self._provider.close()
        self._disconnect()

    # The inside

    def _prepare_one(self, batch: int) -> None:
        model, channel = self.model, self._connected()
        bundle_id, seed = secrets.token_hex(ID_BYTES), Seed.fresh()
        pads = BundlePads(seed, bytes.fromhex(bundle_id), bytes.fromhex(model.graph_hash), batch)
        with self._store.adding(
            bundle_id,
            batch=batch,
            owner=self.name,
            server=self._peer_server(channel),
            model_id=model.model_id,
            graph_hash=model.graph_hash,
        ) as file:
            file.write(seed.reveal())
            try:
                self._provider.make(channel, model, pads)
            except BaseException:
                self._disconnect()
                raise

    def _open(self, lease: Lease) -> None:
        """Opens a bundle on both sides; where the server does not have it, only the client's copy is spent."""
        bundle, model, channel = lease.bundle, self.model, self._connected()
        seed = Seed(lease.map()[:SEED_BYTES])
        try:
            channel.send_control(Kind.OPEN, bundle_id=bundle.bundle_id, batch=bundle.batch, **model.fields)
            expect(channel, Kind.OPENED, bundle_id=bundle.bundle_id)
        except BaseException as error:
            self._store.spend(bundle.bundle_id)
            self._disconnect()
            if isinstance(error, PeerRefusal) and error.code is ErrorCode.BUNDLE:
                return
            raise
        self._store.spend(bundle.bundle_id)
        pads = BundlePads(seed, bytes.fromhex(bundle.bundle_id), bytes.fromhex(model.graph_hash), bundle.batch)
        self._reserved = ClientInference(model.program, pads)

    def _release(self) -> None:
        """Lets go of a reserved bundle, which ends its connection."""
        if self._reserved is not None:
            self._reserved = None
            self._disconnect()

    def _connected(self) -> Channel:
        """The connection, with nothing under way on it; a new one where the old one has ended."""
        if self._channel is not None and self._channel.poll(0.0):
            self._disconnect()
        if self._channel is None:
            channel = self._endpoint.connect(self._server, "server", self._server_name)
            self.ledger.open(channel)
            self._channel = channel
            try:
                self._learn_model(channel)
            except BaseException:
                self._disconnect()
                raise
        return self._channel

    def _learn_model(self, channel: Channel) -> None:
        channel.send_control(Kind.GET_MODEL)
        body = channel.recv_control(Kind.MODEL).body
        known = self._model
        if known is not None and known.fields == {name: body[name] for name in known.fields}:
            return
        channel.send_control(Kind.GET_GRAPH)
        text = channel.recv_array(Kind.GRAPH, int(body["graph_bytes"])).tobytes()
        self._model = PublicModel.received(str(body["model_id"]), str(body["graph_hash"]), text)
        self._weight_pads = {}
        self._store.retire(self._peer_server(channel), **self._model.fields)
        warm_up(self._model.program)

    def _peer_server(self, channel: Channel) -> str:
        """Which server this is, as the store knows it: the same name at another place may be another server."""
        return f"{channel.peer.name} at {self._server}"

    def _is_alive(self) -> bool:
        return self._channel is not None and not self._channel.poll(0.0)

    def _disconnect(self) -> None:
        channel, self._channel = self._channel, None
        self._reserved = None
        if channel is not None:
            channel.bye()
            self.ledger.close(channel)
