"""Every option of every command: one tree of frozen dataclasses.

The command lines make their flags from these classes (`stt_jax.config.flagfile`), the library takes
the same objects, and a run writes them back as a flagfile beside its checkpoints. A field is made
by `option`, which carries the sentence that `--help` prints. Checks live in `__post_init__`, so a
wrong value is refused in the library with the words that the command line prints.
"""

from stt_jax.config.asking import (
    EvaluationConfig,
    ExportConfig,
    ListsConfig,
    ProtocolConfig,
    RequestConfig,
    ServeConfig,
)
from stt_jax.config.options import check, check_choices, option
from stt_jax.config.preparing import (
    CityConfig,
    CleaningOptions,
    ForgetConfig,
    PrepareConfig,
    ProtectionOptions,
    SplitOptions,
    ValueOptions,
)
from stt_jax.config.raw import (
    DOMAIN,
    TRAIT_SEPARATORS,
    ColumnOptions,
    InputOptions,
)
from stt_jax.config.training import (
    DeviceConfig,
    ModelConfig,
    TrainingConfig,
    WatchConfig,
)

__all__ = [
    "DOMAIN",
    "TRAIT_SEPARATORS",
    "CityConfig",
    "CleaningOptions",
    "ColumnOptions",
    "DeviceConfig",
    "EvaluationConfig",
    "ExportConfig",
    "ForgetConfig",
    "InputOptions",
    "ListsConfig",
    "ModelConfig",
    "PrepareConfig",
    "ProtectionOptions",
    "ProtocolConfig",
    "RequestConfig",
    "ServeConfig",
    "SplitOptions",
    "TrainingConfig",
    "ValueOptions",
    "WatchConfig",
    "check",
    "check_choices",
    "option",
]
