"""Services that a run logs to, addressed as their own users do.

mmengine's backends put everything into the folder of the run, which newer versions of
MLflow refuse, whatever the environment says about where logs belong. An error of a
service would end the training.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import VISBACKENDS
from mmengine.visualization import MLflowVisBackend, WandbVisBackend

from mmfocal.utils.errors import UserError

__all__ = ['MLflowBackend', 'WandbBackend']

DATABASE = 'mlflow.db'
ARTIFACTS = 'mlartifacts'


@VISBACKENDS.register_module()
class MLflowBackend(MLflowVisBackend):
    """MLflow, at the address that is set for it, else in a database in the work folder.

    The address is ``tracking_uri`` of the config, else ``MLFLOW_TRACKING_URI`` or what
    :func:`mlflow.set_tracking_uri` was called with. Without any it is ``mlflow.db`` in the work
    folder, shared by the runs in that folder. Likewise the experiment is ``exp_name`` of the
    config, else that of ``MLFLOW_EXPERIMENT_NAME`` or ``MLFLOW_EXPERIMENT_ID``, else MLflow's
    ``Default`` on a server and the name of the work folder in its own database.

    A service that cannot be reached when a run begins is an error, later on a warning.

    Args:
        save_dir: folder for the files of this run, ``<work folder>/<time>/vis_data``.
        **settings: of mmengine's ``MLflowVisBackend``.

    Raises:
        UserError: when the run begins and MLflow refuses the address or does not answer.
    """

    # The address that the last run of this process had for want of another. MLflow keeps it, as
    # if the user had set it.
    _own_address: ClassVar[str | None] = None

    def __init__(self, save_dir: str, **settings: Any) -> None:
        super().__init__(save_dir, **settings)

    def _init_env(self) -> None:
        import mlflow

        try:
            if self._tracking_uri is None:
                self._set_address(mlflow)
            if self._exp_name is None:
                self._exp_name = _experiment(mlflow)
            super()._init_env()
        except mlflow.MlflowException as error:
            raise UserError(
                f'MLflow: the run cannot be logged ({_first_line(error)}). Set '
                'MLFLOW_TRACKING_URI to a server or database that can be reached, or unset it '
                'for a database in the work folder.'
            ) from error

    def _set_address(self, mlflow: Any) -> None:
        address = mlflow.get_tracking_uri() if mlflow.tracking.is_tracking_uri_set() else None
        if address not in (None, '', MLflowBackend._own_address):
            self._tracking_uri = address
            return
        folder = Path(self._save_dir).absolute()
        if folder.name == 'vis_data':
            folder = folder.parents[1]
        folder.mkdir(parents=True, exist_ok=True)
        self._tracking_uri = MLflowBackend._own_address = f'sqlite:///{folder / DATABASE}'
        self._exp_name = self._exp_name or _experiment(mlflow) or folder.name
        if self._artifact_location is None:
            self._artifact_location = (folder / ARTIFACTS).as_uri()
        # Copies of what lies beside them, of earlier runs' copies too.
        self._artifact_suffix = ()
        print_log(
            f'MLflow: to see this run, mlflow ui --backend-store-uri {self._tracking_uri}',
            'current',
        )

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Logs the config."""
        self._unless_it_fails(super().add_config, config, **kwargs)

    def add_image(self, *args: Any, **kwargs: Any) -> None:
        """Logs an image."""
        self._unless_it_fails(super().add_image, *args, **kwargs)

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        """Logs a number."""
        self._unless_it_fails(super().add_scalar, *args, **kwargs)

    def add_scalars(self, *args: Any, **kwargs: Any) -> None:
        """Logs numbers by name."""
        self._unless_it_fails(super().add_scalars, *args, **kwargs)

    def close(self) -> None:
        """Ends the run at the service."""
        self._unless_it_fails(super().close)

    def _unless_it_fails(self, log: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """A service that stops answering costs its own records, and not the training."""
        import mlflow

        try:
            log(*args, **kwargs)
        except mlflow.MlflowException as error:
            text = f'MLflow did not take what was logged ({_first_line(error)}).'
            print_log(text, 'current', logging.WARNING)


def _experiment(mlflow: Any) -> str | None:
    """Name of the experiment that the environment asks for, or None."""
    if number := os.environ.get('MLFLOW_EXPERIMENT_ID'):
        return mlflow.get_experiment(number).name
    return os.environ.get('MLFLOW_EXPERIMENT_NAME') or None


@VISBACKENDS.register_module()
class WandbBackend(WandbVisBackend):
    """Weights & Biases, with its files in ``WANDB_DIR`` where that is set.

    All other variables of wandb, such as ``WANDB_MODE`` and ``WANDB_PROJECT``, hold as well.

    Args:
        save_dir: folder for the files of this run.
        **settings: of mmengine's ``WandbVisBackend``; ``init_kwargs`` win over variables.

    Raises:
        UserError: when the run begins and wandb refuses it, such as without a login.
    """

    def __init__(self, save_dir: str, **settings: Any) -> None:
        super().__init__(save_dir, **settings)

    def _init_env(self) -> None:
        import wandb

        if os.environ.get('WANDB_DIR'):
            # wandb looks into its environment for what is None.
            self._init_kwargs = {'dir': None, **(self._init_kwargs or {})}
        try:
            super()._init_env()
        except wandb.Error as error:
            raise UserError(
                f'wandb: the run cannot be logged ({_first_line(error)}). Run `wandb login`, or '
                'set WANDB_MODE=offline to write files that `wandb sync` sends later.'
            ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition('\n')[0]
