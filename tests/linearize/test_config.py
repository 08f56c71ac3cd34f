from pathlib import Path

import pytest

from linearize.config import RunConfig, config_keys, dump_config, load_config
from linearize.errors import ConfigError

HOME = Path(__file__).parents[2] / "configs"
CONFIGS = sorted([*HOME.glob("*.yaml"), *HOME.glob("published/*.yaml")])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_round_trips(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config


def test_the_configs_are_those_announced() -> None:
    assert {path.stem for path in CONFIGS} >= {
        "digits",
        "cifar10_resnet18_width16",
        "cifar10_resnet18",
        "cifar100_resnet18",
        "cifar100_wrn22_8",
        "tinyimagenet_resnet18",
    }


def test_digits_yaml_equals_the_defaults_and_shows_every_key() -> None:
    (digits,) = (path for path in CONFIGS if path.stem == "digits")
    assert load_config(digits) == RunConfig() == load_config()
    text = digits.read_text()
    assert all(f"{key.rsplit('.', 1)[-1]}:" in text for key in config_keys())


def test_every_key_has_a_description() -> None:
    def descriptions(model):
        for field in model.model_fields.values():
            yield field.description
            if hasattr(field.annotation, "model_fields"):
                yield from descriptions(field.annotation)

    assert all(descriptions(RunConfig))


def test_overrides_win_over_the_file_and_leave_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("bcd:\n  drc: 7\n  rt: 9\n")
    config = load_config(path, {"bcd.drc": 8, "snl.finetune.epochs": 1})
    assert (config.bcd.drc, config.bcd.rt, config.snl.finetune.epochs) == (8, 9, 1)
    defaults = RunConfig()
    assert config.bcd.finetune == defaults.bcd.finetune
    assert config.snl.finetune.batch_size == defaults.snl.finetune.batch_size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bdc:\n  drc: 1\n", r"a\.yaml: bdc: unknown key; the closest valid key is bcd"),
        ("bcd:\n  drcs: 1\n", r"a\.yaml: bcd\.drcs: unknown key; the closest valid key is bcd\.drc"),
        ("drc: 1\n", r"a\.yaml: drc: unknown key; the closest valid key is bcd\.drc"),
        ("relu_budget: many\n", r"a\.yaml: relu_budget: input should be a valid integer, got 'many'"),
        ("relu_budget: 0\n", r"a\.yaml: relu_budget: input should be greater than or equal to 1, got 0"),
        ("relu_budget: -5\n", r"a\.yaml: relu_budget: input should be greater than or equal to 1, got -5"),
        ("relu_budget: 1.5\n", r"a\.yaml: relu_budget: input should be a valid integer, got 1\.5"),
        ("bcd: 3\n", r"a\.yaml: bcd: input should be a valid dictionary.*, got 3"),
        ("bcd:\n  adt: .nan\n", r"a\.yaml: bcd\.adt: input should be a finite number, got nan"),
        ("data:\n  dataset: mnist\n", r"a\.yaml: data\.dataset: input should be 'digits', 'cifar10', .*, got 'mnist'"),
        ("device: tpu\n", r"a\.yaml: device: input should be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        ("a: [1\n", r"a\.yaml: broken YAML \(.*line.*\)"),
        ("- 1\n", r"a\.yaml: a config is a mapping of keys, got a list"),
        (
            "snl:\n  reference_budget: 10\n",
            r"snl\.reference_budget must be at least relu_budget \(6,000\), got 10; raise it or leave it unset",
        ),
    ],
)
def test_messages_about_a_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bcd.drk": 1}, r"--bcd\.drk: unknown key; the closest valid key is bcd\.drc"),
        ({"bcd.drc": 0}, r"--bcd\.drc: input should be greater than or equal to 1, got 0"),
        ({"bcd.drc": "9"}, r"--bcd\.drc: input should be a valid integer, got '9'"),
        ({"seed": 1, "seed.x": 1}, r"--seed\.x: seed is no section of the config"),
        ({"zzzzzz": 1}, r"--zzzzzz: unknown key; valid keys are relu_budget, "),
    ],
)
def test_messages_about_a_flag(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: the config cannot be read"):
        load_config(tmp_path / "none.yaml")
