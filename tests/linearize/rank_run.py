"""A block coordinate descent of a tiny network on however many ranks; run as a script by test_ranks.

python rank_run.py OUT_DIR BCD_JSON          torchrun --nproc-per-node 2 rank_run.py OUT_DIR BCD_JSON
"""

import json
import sys
from pathlib import Path

import torch

from linearize.bcd import bcd
from linearize.config import BcdConfig, DataConfig
from linearize.data import load_dataset
from linearize.files import save_tensors
from linearize.networks import build_network
from linearize.progress import Reporter
from linearize.ranks import open_ranks
from linearize.relu_mask import set_relu_mask
from linearize.stage import StageContext
from linearize.train import Teacher


def main(root: Path, settings: BcdConfig) -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    data = load_dataset(DataConfig(limit=100), Reporter(quiet=True))
    with open_ranks(device) as ranks:
        # Only the first rank is given the network; the others must take it from there.
        model, teacher = (build_network("resnet18", 4, 10, (1, 8, 8), seed=seed) for seed in (ranks.rank, 9))
        kept = torch.rand(1920, generator=torch.Generator().manual_seed(1 + ranks.rank)) < 0.5
        set_relu_mask(model, kept)
        context = StageContext(data, device, 0, root / "state", Reporter(quiet=True))
        report = bcd(model, Teacher(teacher, data), 500, settings, context, root / "bcd.jsonl", ranks)
        save_tensors(root / f"rank{ranks.rank}.safetensors", model.state_dict(), report)


if __name__ == "__main__":
    main(Path(sys.argv[1]), BcdConfig.model_validate(json.loads(sys.argv[2])))
