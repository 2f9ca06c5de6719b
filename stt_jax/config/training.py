"""Options of the model, of its training and of the devices: train."""

from __future__ import annotations

import dataclasses
import math

from stt_jax.config.options import check, check_choices, check_finite, option

MOST_TIMES = 168  # that a hidden request time may be


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network: event embedding, gated blocks, decoder, generating and pointing head."""

    width: int = option(64, "Width of embeddings and hidden states.")
    num_layers: int = option(2, "Gated spatiotemporal blocks that encode the history.")
    num_heads: int = option(4, "Attention heads; must divide the width.")
    dropout: float = option(0.3, "Dropout rate on embeddings and block outputs, in [0, 1).")
    use_time: bool = option(True, "Let the model see times: gaps, hour of the week, request time.")
    use_place: bool = option(True, "Let the model see places: coordinates, distances, cells.")
    use_order: bool = option(
        False,
        "Let the blocks see how many events lie between two, as the pointers do; always on where "
        "the model sees no times.",
    )
    use_event_norm: bool = option(
        False,
        "Bring the vectors of events to unit scale before the first block: where nearly all is in "
        "the ids, as in shops without times, they are learned in fewer steps.",
    )
    use_gate: bool = option(True, "Gate each block, f_enc(x) * g_att(x, x'); off: attention only.")
    use_decoder: bool = option(
        True, "Let the request attend to the history; off: it starts from the last state alone."
    )
    use_pointer: bool = option(True, "Mix in pointing at the person's own history.")
    use_sequel: bool = option(
        True, "With --use_pointer: point also at what followed the last item earlier, alone."
    )
    habit_share: float = option(
        0.0,
        "With --use_pointer: share of the answer that is the person's own history, counted by hour "
        "and by what was last, in [0, 1); training does not see it. For people who do for years "
        "what they do, as at places.",
    )
    likely_times: int = option(
        0,
        "With --use_pointer: a request that hides its time is asked at so many likely ones, and "
        "what it points at is the mean of that; 0 = as one without a time. Training does not see "
        "it. For logs where the hour says much of where people go.",
    )
    use_crowd: bool = option(
        True,
        "Mix in what the crowd did: what followed the last items, what goes together, what was "
        "popular lately; counted in the training part.",
    )
    use_boost: bool = option(
        False,
        "With --use_crowd: what the crowd did also raises the logits of generating, so that "
        "network and crowd multiply; sharper at the top where baskets repeat each other.",
    )
    use_popularity: bool = option(
        False,
        "Let generating begin at how often each item was in the training part, and learn what is "
        "other than that: a short training need not find it out.",
    )
    trend_lag_h: int = option(
        0,
        "With --use_crowd: how old the trends are that a request sees, in training too, where they "
        "would be fresher than what a model knows long after it was trained.",
    )
    trend_half_lives_h: tuple[float, ...] = option(
        (24.0,),
        "With --use_crowd: hours after which an event counts half for what is popular, a source of "
        "the mixture each; news ages in an hour, shops in days.",
    )
    trend_step_min: int = option(
        60,
        "With --use_crowd: minutes after which it is counted anew what is popular; news wants 5.",
    )
    succession_half_lives_h: tuple[float, ...] = option(
        (),
        "With --use_crowd: hours after which it counts half that an item came right after another, "
        "a source of the mixture each: what do people go on to from here lately? None: not asked.",
    )
    num_related: int = option(50, "With --use_crowd: items that each item is related to, 1..50.")
    use_person: bool = option(True, "Give each person of the training part an embedding.")
    use_traits: bool = option(True, "Let the model see what the log says of items and people.")
    id_dropout: float = option(
        0.0,
        "Fraction of the items and people, drawn each step, that do without the vector of their "
        "id, in [0, 1): what is known besides learns to do alone, as it has to for new ones.",
    )
    num_time_buckets: int = option(64, "Log-scale buckets of the time gap, two an octave; 2..256.")
    num_space_buckets: int = option(64, "Log-scale buckets of the distance; 2..128.")
    num_order_buckets: int = option(
        64, "How many events back can be told apart; 1..256, older ones share the last."
    )
    attention: str = option(
        "auto",
        "Attention backend; auto takes the first that accepts the input.",
        choices=("auto", "reference", "xla"),
    )
    dtype: str = option(
        "float32",
        "Type of activations; parameters, softmax, norms, losses and sums stay float32.",
        choices=("float32", "bfloat16"),
    )
    remat: bool = option(
        False, "Keep only each block's input for the backward pass and compute the rest again."
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_finite(self)
        check(self.width > 0 and self.num_layers > 0, "--width and --num_layers must be positive")
        check(
            self.num_heads > 0 and self.width % self.num_heads == 0,
            f"--num_heads={self.num_heads} must divide --width={self.width}",
        )
        for name in ("dropout", "id_dropout", "habit_share"):
            rate = getattr(self, name)
            check(0 <= rate < 1, f"--{name}={rate} must be in [0, 1)")
        check(
            2 <= self.num_time_buckets <= 256 and 2 <= self.num_space_buckets <= 128,
            "--num_time_buckets must be in 2..256 and --num_space_buckets in 2..128",
        )
        check(self.use_crowd or not self.use_boost, "--use_boost needs --use_crowd")
        check(self.trend_lag_h >= 0, f"--trend_lag_h={self.trend_lag_h} must be 0 or more")
        check(
            0 < self.trend_step_min <= 60 and 60 % self.trend_step_min == 0,
            f"--trend_step_min={self.trend_step_min} must divide 60",
        )
        for name in ("trend_half_lives_h", "succession_half_lives_h"):
            hours = getattr(self, name)
            check(
                isinstance(hours, tuple) and all(isinstance(hour, int | float) for hour in hours),
                f"{name}={hours!r} must be a tuple of numbers, e.g. (0.25, 24.0)",
            )
            check(
                all(0 < hour < math.inf for hour in hours),
                f"--{name}={','.join(f'{hour:g}' for hour in hours)} must be positive numbers",
            )
        check(
            0 <= self.likely_times <= MOST_TIMES,
            f"--likely_times={self.likely_times} must be in 0..{MOST_TIMES}",
        )
        check(1 <= self.num_related <= 50, f"--num_related={self.num_related} must be in 1..50")
        check(1 <= self.num_order_buckets <= 256, "--num_order_buckets must be in 1..256")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained on the training part of a prepared log."""

    data: str = option("", "Directory of the prepared log.")
    run: str = option("", "Directory of the run: checkpoints, metrics, flags.")
    resume_from: str = option(
        "",
        "Begin with what a run on an older log has learned: its directory. Items, people and the "
        "like keep theirs by id; the model options must be those of that run.",
    )
    seed: int = option(0, "Seed of initialisation, shuffling, dropout and hiding.")
    epochs: float = option(10.0, "Passes over the training events.")
    window: int = option(
        128, "Tokens in a row: the longest history that a request sees in training."
    )
    asked_window: int = option(
        0, "The longest history that a request sees when the model is asked; 0 = as --window."
    )
    requests: int = option(
        64, "Requests in a row, at most --window; fewer gives each a longer past at a price."
    )
    batch_rows: int = option(16, "Rows in a batch.")
    learning_rate: float = option(2e-3, "Peak learning rate of AdamW.")
    warmup: float = option(0.05, "Fraction of the steps that the learning rate rises.")
    weight_decay: float = option(0.05, "AdamW weight decay, on matrices only.")
    clip_norm: float = option(1.0, "Largest global norm of the gradient.")
    accumulate: int = option(
        1, "Parts of a batch whose gradients are added up before the one update; less memory."
    )
    label_smoothing: float = option(0.1, "Weight of the uniform part of the generating target.")
    generate_weight: float = option(
        0.0,
        "Weight of a further loss, that of generating alone: what pointers and crowd explain, it "
        "then learns too, for when they have nothing to go by.",
    )
    loss: str = option(
        "full",
        "Softmax over the catalogue. full: all logits at once; chunked: the same numbers in little "
        "memory; sampled: the items of the batch and a drawn part of the others stand for all.",
        choices=("full", "chunked", "sampled"),
    )
    loss_chunk_items: int = option(512, "loss=chunked: items whose logits are held at once.")
    num_negatives: int = option(
        1024, "loss=sampled: items drawn a step, at most as many as there are."
    )
    negatives: str = option(
        "log_uniform",
        "loss=sampled: which items are drawn. log_uniform: 1..V in strata of equal log rank, so "
        "frequent items nearly always; uniform: each alike.",
        choices=("log_uniform", "uniform"),
    )
    in_batch_negatives: bool = option(
        True, "loss=sampled: every request is also compared with the targets of the whole batch."
    )
    known_time_rate: float = option(0.5, "Fraction of training requests that show their time.")
    known_place_rate: float = option(0.1, "Fraction of training requests that show their place.")
    place_noise_m: float = option(
        500.0,
        "Standard deviation, metres, by which a shown training place is moved: a device's place is "
        "near, not at, the item that comes next.",
    )
    known_domain_rate: float = option(
        0.5, "With domains: fraction of training requests that name the domain they ask for."
    )
    hide_domain_rate: float = option(
        0.2,
        "With domains: fraction of training windows whose history lacks one of its own, drawn at "
        "random: what is asked there has to be known from the others, as of people new to it.",
    )
    balance_domains: float = option(
        0.0,
        "With domains: 1 = each counts the same in the loss, 0 = each event does, in [0, 1].",
    )
    cold_rate: float = option(
        0.0,
        "Fraction of people's first training requests (fewer than 10 events before them) that see "
        "neither history nor who asks: what is known of a person besides, and of the moment, "
        "learns to do alone, as it has to for new people.",
    )
    stale_rate: float = option(
        0.0,
        "Fraction of training requests that do not see the last events before them: what comes "
        "after several events is learned too, and answers from a state that is behind.",
    )
    stale_events: float = option(
        2.0, "With --stale_rate: how many events such a request does not see, on average; from 1."
    )
    validation_every: float = option(1.0, "Epochs between validations.")
    validation_targets: int = option(
        2000, "Most validation targets per validation, drawn by a fixed seed; 0 = all of them."
    )
    patience: int = option(5, "Validations without a better one before stopping; 0 = never stop.")
    select_by: str = option(
        "mrr",
        "What the validation part is judged by, mean of both request modes: which step is the "
        "best, when --patience ends, what --calibrate looks for.",
        choices=("mrr", "accuracy@1", "hr@10", "ndcg@10"),
    )
    calibrate: bool = option(
        False,
        "When training has ended, move the weights of the mixture's sources, a number each, to "
        "what ranks best on the validation part; kept if it is better by --select_by.",
    )
    dp_epsilon: float = option(
        0.0,
        "Train with differential privacy for people, at most so much of it spent; 0 = without. "
        "--batch_rows is then the expected number of people in a step.",
    )
    dp_delta: float = option(1e-6, "The delta of that privacy; below one over the people.")
    dp_clip: float = option(1.0, "Largest norm of the gradient of one person in a private step.")
    keep: int = option(2, "Latest checkpoints kept besides the best; one at the least.")
    checkpoint_every: int = option(
        0, "Steps between checkpoints; 0 = one with each validation, and when stopped."
    )
    max_bad_steps: int = option(
        10,
        "Stop after so many steps in a row whose loss or gradient is not finite; such steps "
        "change no parameter.",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_finite(self)
        check(0 < self.requests <= self.window, "--requests must be in 1..--window")
        check(self.asked_window >= 0, f"--asked_window={self.asked_window} must not be negative")
        for name in ("epochs", "validation_every"):
            value = getattr(self, name)
            check(0 < value < math.inf, f"--{name}={value} must be a finite number above 0")
        for name in ("batch_rows", "learning_rate", "clip_norm"):
            check(getattr(self, name) > 0, f"--{name}={getattr(self, name)} must be positive")
        check(0 <= self.warmup < 1, f"--warmup={self.warmup} must be in [0, 1)")
        for name in (
            "label_smoothing",
            "known_time_rate",
            "known_place_rate",
            "known_domain_rate",
            "hide_domain_rate",
            "balance_domains",
            "cold_rate",
            "stale_rate",
        ):
            check(0 <= getattr(self, name) <= 1, f"--{name} must be in [0, 1]")
        check(self.stale_events >= 1, f"--stale_events={self.stale_events} must be at least 1")
        for name in (
            "weight_decay",
            "generate_weight",
            "place_noise_m",
            "validation_targets",
            "patience",
            "keep",
            "checkpoint_every",
            "dp_epsilon",
        ):
            check(getattr(self, name) >= 0, f"--{name}={getattr(self, name)} must not be negative")
        check(
            not (self.dp_epsilon and self.resume_from),
            "--dp_epsilon says nothing of what --resume_from brings along; leave out one of them",
        )
        check(
            not (self.dp_epsilon and self.calibrate),
            "--dp_epsilon does not cover what --calibrate fits; leave out one of them",
        )
        check(0 < self.dp_delta < 1, f"--dp_delta={self.dp_delta} must be in (0, 1)")
        check(  # a key of JAX holds no more
            0 <= self.seed < 2**32, f"--seed={self.seed} must be in 0..{2**32 - 1}"
        )
        check(self.dp_clip > 0, f"--dp_clip={self.dp_clip} must be positive")
        for name in ("accumulate", "max_bad_steps"):
            check(getattr(self, name) > 0, f"--{name}={getattr(self, name)} must be positive")
        for name in ("loss_chunk_items", "num_negatives"):
            check(getattr(self, name) > 0, f"--{name}={getattr(self, name)} must be positive")

    @property
    def asked_tokens(self) -> int:
        """Of a history, the most that a request sees when the model is asked."""
        return self.asked_window or self.window


@dataclasses.dataclass(frozen=True)
class DeviceConfig:
    """Which devices and processes do the work; never what comes out of it."""

    cpu_devices: int = option(
        0,
        "Without an accelerator: devices that the CPU is cut into, a core or a few each, for "
        "--mesh_data and --mesh_model; 0 = it is one device.",
    )
    mesh_data: int = option(1, "Devices that share the rows of a batch; -1 = all that are left.")
    mesh_model: int = option(
        1, "Devices that share the rows of the item and people tables; -1 = all that are left."
    )
    fsdp: bool = option(False, "Split the other parameters too, over the devices of --mesh_data.")
    coordinator: str = option(
        "",
        "Several processes: host:port of process 0, or auto to find it from SLURM, Kubernetes, "
        "Open MPI or the cloud.",
    )
    num_processes: int = option(1, "Several processes: how many.")
    process_id: int = option(0, "Several processes: the number of this one, from 0.")

    def __post_init__(self) -> None:
        check(self.cpu_devices >= 0, f"--cpu_devices={self.cpu_devices} must not be negative")
        for name in ("mesh_data", "mesh_model"):
            size = getattr(self, name)
            check(size == -1 or size > 0, f"--{name}={size} must be positive, or -1 for the rest")
        check(
            not (self.mesh_data == -1 and self.mesh_model == -1),
            "only one of --mesh_data and --mesh_model can be -1",
        )
        check(
            0 <= self.process_id < self.num_processes,
            f"--process_id={self.process_id} must be in 0..--num_processes-1 = "
            f"{self.num_processes - 1}",
        )
        check(
            self.num_processes == 1 or bool(self.coordinator),
            "--num_processes needs --coordinator=host:port of process 0",
        )


@dataclasses.dataclass(frozen=True)
class WatchConfig:
    """Looking at a training without changing it."""

    dry_run: bool = option(
        False, "Print parameters, placement, operations and memory of the step, and stop there."
    )
    profile_steps: str = option(
        "", "Steps a:b of which a trace is written to profile/ in the run directory, for XProf."
    )

    def __post_init__(self) -> None:
        self.profiled()

    def profiled(self) -> range:
        """The steps of --profile_steps; empty where none are asked for."""
        if not self.profile_steps:
            return range(0)
        first, _, end = self.profile_steps.partition(":")
        check(
            first.isdecimal() and end.isdecimal() and int(first) < int(end),
            f"--profile_steps={self.profile_steps} must be a:b with a < b, e.g. 100:110",
        )
        return range(int(first), int(end))
