"""Handlers of signals: the run's own, not Lightning's."""

from lightning.pytorch import Callback, LightningModule, Trainer

from hybridiff.cluster.signals import StopSignals


class SignalCallback(Callback):
    """Sets the run's handlers again after Lightning has set its own, which for SIGTERM waits for all ranks inside the signal."""

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Comes right after Lightning has set its handlers, when all ranks have connected."""
        self._signals.generating = True
        if trainer.received_sigterm:  # by Lightning's handler, while the ranks waited for each other
            self._signals.ask("SIGTERM")
        self._signals.install()
