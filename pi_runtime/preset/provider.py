"""Where bundles come from, as the client sees it: one interface, of which the dealer is the first kind.

A provider makes the server hold s_l = W_l * r - p_l of each linear layer and its half of each gate, for a client whose
share of every wire follows from the bundle's seed (PROTOCOL.md, section 10). The online phase knows no provider.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pi_runtime.net.channel import Channel
from pi_runtime.net.endpoint import Endpoint
from pi_runtime.net.messages import Kind
from pi_runtime.preset.bundle import BundleLayout
from pi_runtime.preset.ledger import Ledger
from pi_runtime.preset.model import PublicModel
from pi_runtime.preset.offline import PackedPad, client_deliveries
from pi_runtime.preset.reply import expect
from pi_runtime.preset.shares import BundlePads


class BundleProvider(Protocol):
    """Makes bundles together with client and server."""

    def make(self, server: Channel, model: PublicModel, pads: BundlePads) -> None:
        """Makes the bundle of ``pads``; returns when the server has it in its store.

        Raises:
            RemoteProtocolError: a peer went away, refused or broke the protocol. ``server`` may then be unusable.
        """

    def close(self) -> None:
        """Ends its own connections; safe to call twice."""


class DealerProvider:
    """Bundles from a dealer, which gets the seed; the client adds its part b_l of each linear layer.

    name: of the only dealer that may get seeds; any dealer of the CA if None. weight_pads: gives D of the model,
    packed; asked for when the first bundle is made.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        address: str,
        weight_pads: Callable[[], PackedPad],
        *,
        name: str | None,
        ledger: Ledger,
        threads: int = 1,
    ) -> None:
        self._endpoint = endpoint
        self._address = address
        self._name = name
        self._weight_pads = weight_pads
        self._ledger = ledger
        self._threads = threads
        self._channel: Channel | None = None

    def make(self, server: Channel, model: PublicModel, pads: BundlePads) -> None:
        try:
            self._make(server, self._connected(), model, pads)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.bye()
            self._ledger.close(channel)

    def _make(self, server: Channel, dealer: Channel, model: PublicModel, pads: BundlePads) -> None:
        bundle_id = pads.bundle_id.hex()
        bundle = {"bundle_id": bundle_id, **model.fields}
        weight_pads = self._weight_pads()
        # The server learns of the bundle before the dealer does: it drops material that nobody announced to it.
        server.send_control(Kind.PREPARE, batch=pads.batch, **bundle)
        expect(server, Kind.PREPARED, bundle_id=bundle_id)
        dealer.send_control(Kind.DEAL, batch=pads.batch, **bundle)
        dealer.send_array(Kind.BUNDLE_SEED, pads.seed.reveal())
        # Not waiting for the dealer here: it deals while this side computes.
        for part in client_deliveries(model.program, weight_pads, pads, self._threads):
            server.send_stream(Kind.CLIENT_SHARE, part.nbytes, part.pieces, layer=part.step.index)
        timeouts = server.timeouts
        within_s = timeouts.read_s + BundleLayout(model.program, pads.batch).total_bytes / timeouts.min_rate_bytes_s
        expect(dealer, Kind.DEALT, within_s=within_s, bundle_id=bundle_id)
        expect(server, Kind.STORED, within_s=within_s, bundle_id=bundle_id)

    def _connected(self) -> Channel:
        """The connection to the dealer; a new one where the old one has ended."""
        if self._channel is not None and self._channel.poll(0.0):
            self.close()
        if self._channel is None:
            self._channel = self._endpoint.connect(self._address, "dealer", self._name)
            self._ledger.open(self._channel)
        return self._channel
