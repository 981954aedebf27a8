"""The header of a record: what is trained, with what, and where."""

from __future__ import annotations

import platform
import sys
from datetime import datetime
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from whyspike.hyper import is_plain, plain


def header(name: str, model: Any, optimizer: Any, scheduler: Any, scaler: Any) -> dict[str, object]:
    """What the header says of every training, whatever its loader is."""
    has_defaults = isinstance(optimizer, Optimizer)
    return {
        "name": name,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "model": type(model).__name__,
        "layers": sorted({type(m).__name__ for m in model.modules()}) if isinstance(model, nn.Module) else None,
        "n_parameters": sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else None,
        "optimizer": {
            "name": type(optimizer).__name__,
            "defaults": {k: plain(v) for k, v in optimizer.defaults.items() if is_plain(v)} if has_defaults else {},
        },
        "scheduler": type(scheduler).__name__ if scheduler is not None else None,
        "scaler": scaler is not None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "script": sys.argv[0] if sys.argv else "",
    }
