"""The handlers of signals, kept from Lightning."""

from lightning.pytorch import Callback, LightningModule, Trainer

from hybridiff.cluster.signals import StopSignals


class SignalCallback(Callback):
    """Takes the handlers back from Lightning, whose own for SIGTERM waits for all ranks inside the signal."""

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Comes right after Lightning has set its own, when all ranks have come together."""
        self._signals.drawing = True
        if trainer.received_sigterm:  # by Lightning's, while the ranks waited for each other
            self._signals.ask("SIGTERM")
        self._signals.install()
