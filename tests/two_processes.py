"""What `accelerate launch` runs in the tests: ``duet_train`` as it is, looked at from each process.

accelerate shards weights on accelerators alone. With ``PRETEND_GPUS`` set it takes the processors for such, so that the
shipped configurations of FSDP and DeepSpeed run where there is no GPU.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any


def pretend_gpus() -> None:
    """Processes of one machine that talk by gloo, and count as GPUs."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    from accelerate.state import DistributedType, PartialState
    from transformers import training_args

    training_args.is_torch_bf16_gpu_available = lambda: True
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def watch_saving() -> None:
    """Beside the run directory each process notes what weights it has at the end."""
    from duet_train import trainers

    save = trainers.save

    def watched(trainer: Any, folder: Path) -> None:
        save(trainer, folder)
        learnt = [weights.detach() for weights in trainer.model.parameters() if weights.requires_grad]
        digest = hashlib.sha256(b"".join(weights.float().numpy().tobytes() for weights in learnt))
        note = folder.parent.with_suffix(f".{trainer.args.process_index}")
        note.write_text(f"{len(learnt)} {digest.hexdigest()}", encoding="utf-8")

    trainers.save = watched


if __name__ == "__main__":
    from duet_train.__main__ import main

    if "PRETEND_GPUS" in os.environ:
        pretend_gpus()
    else:
        watch_saving()
    sys.exit(main())
