"""A bundle that is loaded for service: what a request needs to know of the model it is given."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from time import thread_time
from typing import Final

from PIL import Image

from taillift.models.bundle.arrays import Doubles, Pixels
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.device import Provider
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.folder import read_golden, verify_files
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.posterior import Prior
from taillift.models.bundle.predictor import Predictor
from taillift.models.bundle.schema import FILES
from taillift.models.bundle.session import Outputs, Session
from taillift.models.errors import UserError
from taillift.service.inference.background import run_in_background
from taillift.service.inference.graph_choice import open_classifier
from taillift.service.inference.priors import LIVE, read_priors
from taillift.service.monitoring.recorder import Monitoring
from taillift.service.problems import NotReadyError
from taillift.service.settings import Settings
from taillift.service.tail.prevalence import LiveShares

logger = logging.getLogger(__name__)

CHANNELS: Final = 3
STARTING: Final = "the bundle is being checked and warmed"


class ResidentBundle:
    """One bundle in a process: its manifest, priors and monitoring; once open, its model too.

    It is the `DeviceModel` that the runner opens and runs in its own thread. Everything else is for
    the event loop.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        settings: Settings,
        monitoring: Monitoring,
        alongside: bool = False,
    ) -> None:
        """If it is opened `alongside` a version that answers requests, these come first.

        Raises `UserError` if the priors cannot be read.
        """
        self.folder = folder
        self.manifest = manifest
        self.monitoring = monitoring
        self._settings = settings
        self.alongside = alongside
        self.priors = self._read_priors()
        self.precision_reason = ""
        self._checked = False
        self._classifier: Classifier | None = None
        self._predictor: Predictor | None = None

    def read_priors_again(self) -> None:
        """Read the file of priors again; if it is wrong, the priors stay and the log says so."""
        try:
            self.priors = self._read_priors()
        except UserError as error:
            logger.error("the priors stay as they were: %s", error)
        else:
            logger.warning("the priors were read again")

    def check_files(self) -> None:
        """Check the files in the background, so that `open` need not; raises `UserError`."""
        run_in_background(lambda: verify_files(self.folder, self.manifest))
        self._checked = True

    def _read_priors(self) -> Mapping[str, Doubles]:
        reserved = (*Prior, LIVE) if self._settings.live_prior else tuple(Prior)
        return read_priors(self._settings.priors, self.manifest, reserved)

    @property
    def prior_names(self) -> list[str]:
        """The names that a request may use as prior."""
        return [*self.priors, *([] if self.live_prior is None else [LIVE])]

    @property
    def live_prior(self) -> LiveShares | None:
        """The prior that follows the groups' shares, as it is now; None without the setting."""
        live = self.monitoring.monitor.live
        return None if live is None else live.current

    def open(self) -> None:
        """Check the files and load the model.

        If it is loaded again, the graph stays the one that was served before, even if another is
        faster by now. Raises `UserError`, also if the folder holds another bundle by then.
        """
        self.close()
        device = self._settings.device
        if self._predictor is not None:
            classifier = Classifier.open(self.folder, device, self._predictor.precision)
        elif self.alongside and device.provider is Provider.CPU:
            classifier = self._open_alongside()
        else:
            classifier, self.precision_reason = open_classifier(
                self.folder, self._settings.precision, device, verified=self._checked
            )
        if classifier.manifest.version != self.manifest.version:
            raise UserError(
                f"{self.folder} has been exchanged for another bundle, version "
                f"{classifier.manifest.version} instead of {self.manifest.version}: restart the "
                "service"
            )
        self._classifier, self._predictor = classifier, classifier.predictor

    def _open_alongside(self) -> Classifier:
        """Check the files and the graph in the background, with one thread; then load it to serve.

        The threads of a session that is made in the background stay there. So a second one serves,
        whose threads are made before.
        """
        settings = self._settings
        alone = replace(settings.device, threads=1)
        checked, self.precision_reason = run_in_background(
            lambda: open_classifier(self.folder, settings.precision, alone, clock=thread_time)
        )
        checked.session.close()
        graph = self.folder / FILES[checked.predictor.precision]
        session = run_in_background(
            lambda: Session(graph, settings.device, self.manifest.preprocessing.size),
            # The thread that runs a batch is one of them.
            foreground=settings.threads - 1,
        )
        return Classifier(session, checked.predictor)

    def known_image(self) -> bytes:
        """Return one of the bundle's golden views as a PNG file; it is read from the disk."""
        view = read_golden(self.folder, self.predictor.precision)[0][0]
        file = BytesIO()
        Image.fromarray(view).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def run(self, pixels: Pixels) -> Outputs:
        """Run views uint8 [N, S, S, 3] on the device; the logits carry no prior."""
        if self._classifier is None:
            raise RuntimeError("the model is not loaded")
        return self._classifier.run(pixels)

    def close(self) -> None:
        """Free the model's memory; the next one may need it. The predictor stays."""
        if self._classifier is not None:
            self._classifier.session.close()
            self._classifier = None

    @property
    def predictor(self) -> Predictor:
        """The predictor of the graph in service; raises `NotReadyError` while starting."""
        if self._predictor is None:
            raise NotReadyError(STARTING)
        return self._predictor

    @property
    def usual_ensemble(self) -> Ensemble:
        """The ensemble of a request that names none."""
        return self.predictor.usual_ensemble

    @property
    def usual_tail(self) -> float:
        """The tail of a request that names none."""
        return self._settings.tail

    @property
    def view_bytes(self) -> int:
        """The bytes of one view."""
        return CHANNELS * self.manifest.preprocessing.size**2
