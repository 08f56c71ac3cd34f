"""The sections of a run's settings: what a key means, its unit, default and range, and what excludes what.

Every field is described with its unit; the command line makes one flag of each. The defaults are the digits run.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

DatasetName = Literal["digits", "cifar10", "cifar100", "tinyimagenet", "folder"]
NetworkName = Literal["resnet18", "wrn22"]
Schedule = Literal["one_cycle", "cosine", "step"]
MethodName = Literal["bcd", "snl", "autorep", "taylor", "gradual", "sensitivity", "layer_culling", "random_mask"]
ReferenceName = Literal["snl", "autorep", "taylor", "gradual", "none"]


class Section(BaseModel):
    """Base of all sections: frozen, strictly typed, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where images come from and how they are split and augmented."""

    dataset: DatasetName = Field("digits", description="digits, cifar10, cifar100, tinyimagenet or folder")
    data_dir: str | None = Field(None, description="directory of the dataset; unused by digits")
    image_size: int | None = Field(
        None, ge=8, le=1024, description="pixels per side, for folder and tinyimagenet; unset: 32 and 64"
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=0.9, description="fraction of the training images held out for every choice"
    )
    limit: int | None = Field(None, ge=1, description="images kept of each split, evenly over classes; unset: all")
    epoch_images: int | None = Field(
        None, ge=1, description="training images of an epoch, drawn anew for each; unset: all"
    )
    augment: bool = Field(True, description="augment training images (crop with padding, flip)")
    crop_padding: int | None = Field(
        None,
        ge=0,
        le=64,
        description="pixels padded before a random crop; unset: 4 from 32 pixels a side on, else none",
    )
    flip: bool | None = Field(None, description="mirror half of the training images; unset: all datasets but digits")
    download: bool = Field(False, description="allow a download of cifar10 or cifar100 into data_dir")
    cache_dir: str | None = Field(
        None, description="directory of decoded images; unset: $PI_PIPELINE_CACHE or ~/.cache/pi-pipeline"
    )


class NetworkConfig(Section):
    """Which classifier."""

    name: NetworkName = Field("resnet18", description="resnet18 or wrn22")
    width: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="channels of the first stage (resnet18) or widen factor (wrn22); unset: 64 and 8",
    )
    model: str | None = Field(
        None,
        pattern=":",
        description="in place of name: torchvision:NAME, or package.module:function, whose code is run",
    )
    weights: str | None = Field(
        None, description="safetensors file of weights to start from; baseline.epochs 0 keeps them as they are"
    )

    @property
    def label(self) -> str:
        """What the network is called: its model, or its name."""
        return self.model or self.name


class SgdConfig(Section):
    """Stochastic gradient descent over a number of epochs."""

    epochs: int = Field(20, ge=0, description="passes over the training images")
    batch_size: int = Field(128, ge=2, description="images per gradient step")
    lr: float = Field(0.001, gt=0, description="largest learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty on all weights")
    schedule: Schedule = Field("cosine", description="course of the learning rate: one_cycle, cosine or step")


class DistillConfig(SgdConfig):
    """SGD on cross-entropy plus distillation from the full-ReLU network."""

    kd_weight: float = Field(1.0, ge=0, description="weight of the distillation loss beside cross-entropy")
    kd_temperature: float = Field(4.0, gt=0, description="softmax temperature of distillation")
    augment: bool = Field(True, description="augment here too; without it the teacher's logits are computed only once")


class LastFinetuneConfig(DistillConfig):
    """Training after the search, the same for every method."""

    validate_every: int = Field(
        1, ge=1, description="epochs between two looks at the validation images for the best epoch; always the last"
    )
    soup: int = Field(1, ge=1, le=64, description="finetunes from the same start whose weights are averaged")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay a step of an exponential moving average of the weights; 0: none"
    )


class BaselineConfig(SgdConfig):
    """Training of the network with all its ReLUs."""

    epochs: int = Field(6, ge=0, description="passes over the training images; 0 only where network.weights is set")
    batch_size: int = Field(64, ge=2, description="images per gradient step")
    lr: float = Field(0.02, gt=0, description="largest learning rate")
    schedule: Schedule = Field("one_cycle", description="course of the learning rate: one_cycle, cosine or step")


class SnlConfig(Section):
    """Selective network linearization: the mask phase that makes BCD's reference network."""

    reference_budget: int | None = Field(
        None, ge=1, description="ReLUs of bcd's reference network, of any kind; unset: 1.5 times relu_budget"
    )
    max_epochs: int = Field(8, ge=1, description="most passes over the training images in the mask phase")
    batch_size: int = Field(64, ge=2, description="images per gradient step of the mask phase")
    lr: float = Field(0.001, gt=0, description="Adam's learning rate for the weights")
    mask_lr: float = Field(0.04, gt=0, description="Adam's learning rate for the real-valued masks")
    l1_weight: float = Field(1e-3, gt=0, description="penalty on the sum of the masks, at the start")
    growth: float = Field(1.5, ge=1, description="factor on l1_weight after an epoch without a new lowest count")
    patience: int = Field(1, ge=0, description="epochs before l1_weight may grow")
    threshold: float = Field(0.01, ge=0, lt=1, description="masks above this count as kept ReLUs")
    kd_weight: float = Field(1.0, ge=0, description="weight of the distillation loss beside cross-entropy")
    kd_temperature: float = Field(4.0, gt=0, description="softmax temperature of distillation")
    augment: bool = Field(True, description="augment here too; without it the teacher's logits are computed only once")
    finetune: DistillConfig = Field(
        DistillConfig(epochs=1, batch_size=64, lr=0.01),
        description="training of the reference network after its masks were made binary",
    )


class BcdConfig(Section):
    """Block coordinate descent (arXiv 2511.11781); the options beyond the paper are off by default."""

    drc: int = Field(300, ge=1, description="delta ReLU count: ReLUs removed per step")
    drc_fraction: float = Field(
        0.0, ge=0, lt=1, description="remove this fraction of what is above the budget where that is more than drc"
    )
    rt: int = Field(4, ge=1, description="random tries: most candidate blocks scored per step")
    adt: float = Field(
        0.3, gt=0, le=100, description="accuracy degradation tolerance: points of training accuracy a block may cost"
    )
    drift: bool = Field(
        False, description="take the last try's accuracy as the next step's reference, as the prototype did"
    )
    scoring: Literal["full", "exact", "racing"] = Field(
        "exact", description="full: all images; exact: until decided, same masks; racing: a sequential test on a sample"
    )
    score_images: int | None = Field(
        None, ge=1, description="training images that candidates are scored on, drawn once; unset: all"
    )
    racing_share: float = Field(0.1, gt=0, le=1, description="racing: most images scored, a fraction of all")
    racing_error: float = Field(
        0.05, gt=0, lt=0.5, description="racing: probability of a wrong early decision on a candidate, each way"
    )
    eval_batch_size: int = Field(256, ge=1, description="images per forward pass when candidates are scored")
    proposal: Literal["uniform", "gradient", "mixed"] = Field(
        "uniform", description="blocks at random, by lowest first-order worth, or by both"
    )
    gradient_images: int = Field(2000, ge=1, description="training images that the worth of ReLUs is computed on")
    gradient_statistic: Literal["rms", "absolute"] = Field(
        "rms", description="worth over images: root mean square or mean absolute value"
    )
    gradient_temperature: float = Field(
        0.5, gt=0, description="later blocks are drawn by worth to the power -1/temperature"
    )
    uniform_share: float = Field(0.25, ge=0, le=1, description="share of random blocks where proposal is mixed")
    shape: Literal["element", "channel", "row", "layer"] = Field(
        "element", description="blocks of single ReLUs, whole channels, rows of a layer's map, or layers"
    )
    give_back: int = Field(
        0, ge=0, description="most ReLUs exchanged per step for removed ones, if training accuracy does not fall"
    )
    exchange_steps: int = Field(0, ge=0, description="most steps at the budget that only exchange")
    objective: Literal["relu", "latency"] = Field(
        "relu", description="relu: the count alone; latency: also empty whole layers, a network round trip each"
    )
    round_worth: float = Field(
        2.0, ge=0, le=100, description="latency: points of training accuracy that an emptied layer may cost"
    )
    finetune_policy: Literal["on_rejection", "always"] = Field(
        "on_rejection", description="finetune after steps in which no try met adt, or after every step"
    )
    finetune_ranks: Literal["first", "ddp"] = Field(
        "first", description="under torchrun: finetune on the first rank, or DistributedDataParallel on all"
    )
    finetune: DistillConfig = Field(
        DistillConfig(epochs=1, batch_size=64, lr=0.01), description="training within a step"
    )

    @field_validator("scoring", "exchange_steps")
    @classmethod
    def _combines(cls, value: object, info: ValidationInfo) -> object:
        """Settings that exclude each other; a field sees those declared before it."""
        conflict = {
            "scoring": (value == "racing" and info.data.get("drift"), "must not be racing where bcd.drift is on"),
            "exchange_steps": (
                value != 0 and info.data.get("give_back") == 0,
                "must be 0 where bcd.give_back is 0, which says how many ReLUs are exchanged",
            ),
        }[str(info.field_name)]
        if conflict[0]:
            raise PydanticCustomError("conflict", "{rule}", {"rule": conflict[1]})
        return value


class TaylorConfig(Section):
    """Progressive cuts by first-order scores, with finetuning between them; after ReLUPruner's idea."""

    cuts: int = Field(6, ge=1, description="cuts from all ReLUs to the budget, each by the same factor")
    images: int = Field(1024, ge=1, description="training images that a cut's scores are measured on")
    statistic: Literal["rms", "absolute", "signed"] = Field(
        "rms", description="over images: root mean square, mean of absolute values, or mean with sign"
    )
    loss: Literal["cross_entropy", "distill"] = Field("cross_entropy", description="loss whose change is estimated")
    finetune: DistillConfig = Field(
        DistillConfig(epochs=1, batch_size=64, lr=0.01), description="training after each cut"
    )


class GradualConfig(Section):
    """Training during which the mask follows the worth of ReLUs down to the budget."""

    share: float = Field(0.75, gt=0, le=1, description="share of the training after which the budget is met")
    curve: float = Field(
        1.0, gt=0, le=8, description="1: the count falls by equal factors in equal times; more: faster at first"
    )
    update_every: int = Field(20, ge=1, description="gradient steps between two updates of the mask")
    score_every: int = Field(2, ge=1, description="gradient steps of which one measures the worth of ReLUs")
    memory: float = Field(0.95, ge=0, lt=1, description="decay of the worth's moving average, each measured step")
    return_factor: float = Field(
        1.0, ge=0, description="factor on the worth of removed ReLUs where they compete to come back; 0: none does"
    )
    most_layers: int | None = Field(
        None, ge=1, description="layers that may keep ReLUs; each that is closed on the way down saves a round trip"
    )
    finetune: DistillConfig = Field(
        DistillConfig(epochs=6, batch_size=64, lr=0.02), description="the training that the mask follows"
    )


class AutorepConfig(Section):
    """A trained indicator with hysteresis, and a polynomial a channel for removed ReLUs; after AutoReP's idea."""

    degree: int = Field(1, ge=1, le=2, description="of the polynomial; the secure runtime cannot take degree 2")
    epochs: int = Field(8, ge=1, description="passes over the training images in the mask phase")
    batch_size: int = Field(64, ge=2, description="images per gradient step of the mask phase")
    lr: float = Field(0.001, gt=0, description="Adam's learning rate for the weights and polynomials")
    mask_lr: float = Field(0.01, gt=0, description="Adam's learning rate for the real numbers behind the indicator")
    hysteresis: float = Field(
        0.003,
        ge=0,
        description="a kept ReLU is removed when its number falls below minus this, and back above plus this",
    )
    density_weight: float = Field(
        100.0, gt=0, description="penalty on the share of ReLUs kept above the budget's share"
    )
    images: int = Field(1024, ge=1, description="training images on which the polynomials are fitted at the start")
    kd_weight: float = Field(1.0, ge=0, description="weight of the distillation loss beside cross-entropy")
    kd_temperature: float = Field(4.0, gt=0, description="softmax temperature of distillation")
    augment: bool = Field(True, description="augment here too; without it the teacher's logits are computed only once")


class SensitivityConfig(Section):
    """Layer budgets from ReLU sensitivity, within a layer the largest activation differences; after SENet's idea."""

    density: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of the network's weights that magnitude pruning keeps to measure sensitivity",
    )
    images: int = Field(1024, ge=1, description="training images that activation differences are measured on")


class LayerCullingConfig(Section):
    """Whole layers without ReLUs, the least critical first; after DeepReDuce's idea."""

    images: int = Field(1024, ge=1, description="training images that criticality is measured on")
